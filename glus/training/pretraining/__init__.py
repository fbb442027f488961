"""What a small GLUS learns before it learns to refer, as the large one starts from pretrained parts."""
