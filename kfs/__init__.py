"""KFS, the key-frame selector: scores every frame of a video as the place where GLUS should start."""
