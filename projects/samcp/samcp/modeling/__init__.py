"""Network, losses and inference of SAM-CP."""
