"""Scores for segmentation masks: region similarity J, boundary measure F, and the data-set protocols on them.

Nothing here imports torch. The exact definitions are in the reference document evaluation.md; the fast core is
`glus.evaluation.bitmask` (masks as 64-bit words) and `glus.evaluation.metrics`.
"""
