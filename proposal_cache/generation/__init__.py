"""Run a generator over many images and write the patches to a cache."""
