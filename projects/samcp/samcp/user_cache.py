"""Folder of what can be computed again: text embeddings, and patches of a user's photographs."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return a part of the folder SAMCP_CACHE, or of ~/.cache/samcp."""
    return Path(os.environ.get("SAMCP_CACHE") or Path.home() / ".cache" / "samcp") / name
