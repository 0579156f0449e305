"""Patches from a hierarchy of image regions: needs neither weights nor PyTorch."""

from proposal_cache.generators.regions.generator import RegionGenerator, RegionTree

__all__ = ["RegionGenerator", "RegionTree"]
