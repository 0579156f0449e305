"""Patch generators: `contours` has its own weights; `sam` and `sam2` need a checkpoint."""
