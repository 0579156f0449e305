"""Makers of patches: `regions` needs no weights; `sam` needs torch and a checkpoint."""
