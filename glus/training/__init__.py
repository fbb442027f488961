"""Training: losses, the contrastive token bank, the forward of a step."""
