"""Experiments that repeat the paper's tables on the drawn scenes, with error bars."""
