"""Import and export of caches in the formats of other programs."""
