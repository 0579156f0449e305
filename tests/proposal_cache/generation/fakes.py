"""Generators for tests, and the images that they are run on."""

import multiprocessing
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proposal_cache import PatchCache, Patches, verify


@dataclass
class Halves:
    """Generator whose patch identifies the image: its left part, as wide as the value of the first pixel.

    It raises an exception of `errors` for an image whose first pixel has the value.
    """

    errors: dict[int, BaseException] = field(default_factory=dict)
    calls: int = 0  # number of images so far

    def describe(self) -> dict[str, Any]:
        return {"name": "halves"}

    def __call__(self, image: np.ndarray) -> Patches:
        self.calls += 1
        if int(image[0, 0, 0]) in self.errors:
            raise self.errors[int(image[0, 0, 0])]
        mask = np.zeros((1, *image.shape[:2]), bool)
        mask[:, :, : 1 + image[0, 0, 0] % image.shape[1]] = True
        return Patches.from_masks(mask)


def failing(values: Iterable[int]) -> Halves:
    """Return a generator that fails on images whose first pixel has one of the values."""
    return Halves(dict.fromkeys(values, RuntimeError("height and width must be > 0")))


class Dies(Halves):
    """Generator that kills its process."""

    def __call__(self, image: np.ndarray) -> Patches:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Many(Halves):
    """Generator that returns five patches for the image whose first pixel is 5."""

    def __call__(self, image: np.ndarray) -> Patches:
        return Patches.concatenate([super().__call__(image)] * (5 if image[0, 0, 0] == 5 else 1))


@dataclass
class Boxes(Halves):
    """Generator whose patches are the given boxes."""

    def generate_with_boxes(self, image: np.ndarray, boxes: Any) -> Patches:
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        return Patches.from_masks(masks)


def on_device(device: str, _ignored: object = None) -> Halves:
    return Halves() if device in ("cpu", "cuda:0", "cuda:1") else Dies()


def fails_in_workers(device: str) -> Halves:
    if multiprocessing.parent_process():
        raise RuntimeError("no device")
    return Halves()


class CtrlC:
    """Object that interrupts a process in which it is unpickled, which is before any initializer runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _interrupt_others, (os.getpid(),)


def _interrupt_others(sender: int) -> int:
    if os.getpid() != sender:
        os.kill(os.getpid(), signal.SIGINT)
    return sender


def write_images(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (16, 8), (i, 0, 0)).save(folder / f"{i:02}.png")
    return folder


def content(path: Path) -> dict[str, Any]:
    """Return all that a reader gets from an undamaged cache; each image must be in it once."""
    cache = PatchCache(path)
    assert [verdict for verdict in verify(path) if verdict.problem] == []
    assert sum(shard.images for shard in cache.manifest.shards) == len(cache)
    patches = {key: (found.rles, found.predicted_iou.tobytes()) for key, found in cache.items()}
    return {"patches": patches, "failures": cache.manifest.failures, "generators": cache.manifest.generators}
