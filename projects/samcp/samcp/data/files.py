"""Writing of files that are either complete or absent."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image

from proposal_cache.store.durable import make_directory, write_durably


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; its folder is created."""
    make_directory(path.parent)
    write_durably(path, content)


def write_json(path: Path, content: Any) -> None:
    """Write a json file atomically."""
    write_bytes(path, json.dumps(content).encode())


def write_image(path: Path, pixels: np.ndarray, image_format: str = "PNG", **options: int) -> None:
    """Write an image atomically, with options of Pillow's encoder."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, image_format, **options)
    write_bytes(path, encoded.getvalue())


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write (H, W) uint8 or uint16 class ids as a PNG with one channel."""
    write_image(path, labels)


def write_panoptic_ids(path: Path, ids: np.ndarray) -> None:
    """Write (H, W) segment ids below 2²⁴, 0 for void, as COCO's panoptic PNG."""
    write_image(path, id2rgb(ids))
