"""Training of the boundary network of `proposal_cache.generators.contours`."""
