"""Drawn scenes of the miniature world."""
