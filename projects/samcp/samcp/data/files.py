"""Writing of files that are either complete or absent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` if the block succeeds.

    A file with its final name is therefore complete. The parent folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a json file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write (H, W) uint8 or uint16 class ids as a PNG with one channel."""
    with replacing(path) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")


def write_panoptic_ids(path: Path, ids: np.ndarray) -> None:
    """Write (H, W) segment ids below 2²⁴, 0 for void, as COCO's panoptic PNG."""
    with replacing(path) as temporary:
        Image.fromarray(id2rgb(ids)).save(temporary, format="PNG")
