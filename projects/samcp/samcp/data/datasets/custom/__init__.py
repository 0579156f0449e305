"""Custom datasets, described by a yaml file."""
