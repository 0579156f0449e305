"""A user's own datasets, described by a yaml file."""
