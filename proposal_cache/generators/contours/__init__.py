"""Patches from a learned boundary map; weights are shipped."""

from proposal_cache.generators.contours.generator import ContourGenerator

__all__ = ["ContourGenerator"]
