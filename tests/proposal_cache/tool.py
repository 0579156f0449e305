"""Run the command line in a test, and small inputs for it."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import CacheWriter, Patches
from proposal_cache.cli import main

SIZE = (12, 20)  # height, width


def halves(at: int, **columns: Any) -> Patches:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :, :at], masks[1, :, at:] = True, True
    return Patches.from_masks(masks, **columns)


def write_cache(
    path: Path, generator: Any, images: Mapping[str, Patches], *, failures: Any = (), dataset: str = "toy"
) -> Path:
    """Add images, and failures (pairs of key and reason), to a cache, created if there is none."""
    with CacheWriter(path, generator, dataset) as writer:
        for key, patches in images.items():
            writer.add(key, patches)
        for key, reason in failures:
            writer.add_failure(key, reason)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_annotations(path: Path, names: Mapping[int, str], **content: Any) -> Path:
    """Write a COCO json of images with these ids and file names."""
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in names.items()]
    return write_json(path, {"images": images, **content})


def write_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def run(*arguments: object) -> int:
    """Return the exit status of a command that ends without an error message."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code is None or isinstance(ended.value.code, int), ended.value.code
    return ended.value.code or 0


def error_of(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert str(ended.value.code).startswith("error: ")
    return str(ended.value.code)
