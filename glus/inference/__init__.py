"""Running a model over videos: which frames, in which order, on which worker, and where the masks go."""
