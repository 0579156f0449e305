"""Images × generator → a cache: the same content however it is made, interrupted or not."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from proposal_cache import CacheError, PatchCache, Patches, finalize
from proposal_cache.generation.pipeline import Summary, coverage, generate
from proposal_cache.generation.sources import ImageFile, from_folder


@dataclass
class Halves:
    """A generator whose patches tell which image they are of: its left part, as wide as its first pixel says."""

    calls: int = 0
    on_call: Callable[[int], None] | None = None

    def describe(self) -> dict[str, Any]:
        return {"name": "halves"}

    def __call__(self, image: np.ndarray) -> Patches:
        self.calls += 1
        if self.on_call:
            self.on_call(self.calls)
        mask = np.zeros((1, *image.shape[:2]), bool)
        mask[:, :, : 1 + image[0, 0, 0] % image.shape[1]] = True
        return Patches.from_masks(mask)


@dataclass
class Fails(Halves):
    """Fails on images by their first pixel."""

    on: frozenset[int] = frozenset()

    def __call__(self, image: np.ndarray) -> Patches:
        if int(image[0, 0, 0]) in self.on:
            raise RuntimeError("height and width must be > 0")
        return super().__call__(image)


class Dies(Halves):
    def __call__(self, image: np.ndarray) -> Patches:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(10):
        Image.new("RGB", (16, 8), (i, 0, 0)).save(folder / f"{i}.png")
    return from_folder(folder)


def content(path: Path) -> dict[str, tuple[bytes, ...]]:
    cache = PatchCache(path)
    return {key: cache[key].rles for key in cache}


def make(images: list[ImageFile], path: Path, generator: Halves | None = None, **options: Any) -> Halves:
    generator = generator or Halves()
    generate(images, generator, path, "set", progress=False, **options)
    return generator


def test_every_image_gets_its_own_patches(images: list[ImageFile], tmp_path: Path) -> None:
    make(images, tmp_path / "cache", shard_size=3)
    cache = PatchCache(tmp_path / "cache")
    assert [cache[str(i)].areas.tolist() for i in range(10)] == [[8 * (i + 1)] for i in range(10)]
    assert len(cache.manifest.shards) == 4


@pytest.mark.parametrize("options", [{"workers": 2}, {"loaders": 5}, {"shard_size": 1}])
def test_content_does_not_depend_on_how(images: list[ImageFile], tmp_path: Path, options: dict) -> None:
    make(images, tmp_path / "one")
    make(images, tmp_path / "other", **options)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_ranks_share_the_work(images: list[ImageFile], tmp_path: Path) -> None:
    make(images, tmp_path / "one")
    calls = [make(images, tmp_path / "three", rank=rank, ranks=3).calls for rank in range(3)]
    assert calls == [4, 3, 3]
    finalize(tmp_path / "three")
    assert content(tmp_path / "one") == content(tmp_path / "three")


def test_running_again_does_nothing(images: list[ImageFile], tmp_path: Path) -> None:
    make(images, tmp_path / "cache")
    assert make(images, tmp_path / "cache").calls == 0


def test_interrupted_it_continues(images: list[ImageFile], tmp_path: Path) -> None:
    def interrupt(call: int) -> None:
        if call == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(images, tmp_path / "cache", Halves(on_call=interrupt), shard_size=2)
    assert len(PatchCache(tmp_path / "cache")) == 5
    assert make(images, tmp_path / "cache").calls == 5
    make(images, tmp_path / "one")
    assert content(tmp_path / "cache") == content(tmp_path / "one")


def test_a_bad_image_is_noted_and_tried_again(
    images: list[ImageFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images[4].path.read_bytes()
    images[4].path.write_bytes(b"")
    make(images, tmp_path / "cache")
    cache = PatchCache(tmp_path / "cache")
    assert len(cache) == 9
    assert "the file is empty" in cache.manifest.failures["4"]
    assert "warning: left out: " in capsys.readouterr().err
    assert "9 images, 1 failed" in str(Summary.of(cache))
    images[4].path.write_bytes(good)
    assert make(images, tmp_path / "cache").calls == 1
    assert not PatchCache(tmp_path / "cache").manifest.failures


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_the_generator_fails_on_is_noted_too(
    images: list[ImageFile], tmp_path: Path, workers: int
) -> None:
    make(images, tmp_path / "cache", Fails(on=frozenset({2, 7})), workers=workers)
    cache = PatchCache(tmp_path / "cache")
    assert len(cache) == 8
    assert list(cache.manifest.failures) == ["2", "7"]
    assert cache.manifest.failures["2"] == (
        f"{images[2].path} cannot be cut into patches: RuntimeError: height and width must be > 0"
    )


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_an_image_too_large_for_the_memory_is_noted(
    images: list[ImageFile], tmp_path: Path, error: type[Exception]
) -> None:
    def fail(call: int) -> None:
        if call == 3:
            raise error

    make(images, tmp_path / "cache", Halves(on_call=fail))
    assert error.__name__ in PatchCache(tmp_path / "cache").manifest.failures["2"]


def test_a_broken_generator_does_not_go_through_all_images(images: list[ImageFile], tmp_path: Path) -> None:
    many = [ImageFile(f"{copy}-{image.key}", image.path) for copy in range(3) for image in images]
    broken = Fails(on=frozenset(range(1, 10)))
    make(many, tmp_path / "odd images", broken)  # 9 in a row are not enough
    broken = Fails(on=frozenset(range(10)))
    with pytest.raises(CacheError, match=r"failed on 10 images in a row, the last one: .*9\.png .*RuntimeError"):
        make(many, tmp_path / "cache", broken)
    assert broken.calls == 0
    with pytest.raises(CacheError, match=r"10 images in a row"):
        make(many, tmp_path / "cache", broken)  # the next ones: those that failed before do not count
    make(many[:20], tmp_path / "cache", broken)
    assert len(PatchCache(tmp_path / "cache").manifest.failures) == 20


@dataclass
class TakesBoxes(Halves):
    """Its patches are the boxes."""

    def generate_with_boxes(self, image: np.ndarray, boxes: Any) -> Patches:
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        return Patches.from_masks(masks)


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_of_an_image_reach_the_generator(images: list[ImageFile], tmp_path: Path, workers: int) -> None:
    images[3] = replace(images[3], boxes=((1, 2, 3, 4), (0, 0, 9, 5)))
    make(images, tmp_path / "cache", TakesBoxes(), workers=workers)
    cache = PatchCache(tmp_path / "cache")
    assert cache["3"].boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 5]]
    assert cache["4"].areas.tolist() == [8 * 5]
    with pytest.raises(CacheError, match="boxes, which Halves does not take; use RefineGenerator"):
        make(images, tmp_path / "other")


def test_a_killed_worker_is_named(images: list[ImageFile], tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="a worker process died"):
        make(images, tmp_path / "cache", Dies(), workers=1)


def test_summary_counts(images: list[ImageFile], tmp_path: Path) -> None:
    make(images, tmp_path / "cache")
    summary = Summary.of(PatchCache(tmp_path / "cache"))
    assert (summary.images, summary.failed, summary.patches) == (10, 0, 1.0)
    assert summary.coverage == pytest.approx(np.mean([(i + 1) / 16 for i in range(10)]))
    assert coverage(Patches.empty(4, 4)) == 0
