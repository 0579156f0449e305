"""Patch generators: `regions` needs no weights; `sam` and `sam2` need PyTorch and a checkpoint."""
