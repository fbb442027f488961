"""Data sets as records of (video, expression), image transforms, and the synthetic set."""
