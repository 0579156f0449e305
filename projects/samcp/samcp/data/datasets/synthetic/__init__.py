"""Drawn scenes with exact ground truth."""
