"""`python -m glus report`: results beside each other and the truth, as one HTML page that needs nothing else."""
