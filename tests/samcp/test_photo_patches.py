"""Patches of photographs in the user's cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from proposal_cache import Patches
from proposal_cache.errors import LockedError
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import ImageFile
from proposal_cache.store.lock import rank_lock
from samcp.photo_patches import photo_patches


class Whole:
    """Generator of one patch, the whole image."""

    def describe(self) -> dict[str, Any]:
        return {"name": "whole"}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        return Patches.from_masks(np.ones((1, *image.shape[:2]), bool))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photo(path: Path, size: tuple[int, int]) -> ImageFile:
    Image.new("RGB", size).save(path)
    return ImageFile(path.stem, str(path))


def test_patches_in_the_cache_are_read_while_another_process_writes(cache: Path, tmp_path: Path) -> None:
    done, new = photo(tmp_path / "done.png", (9, 6)), photo(tmp_path / "new.png", (5, 4))
    photo_patches([done], Whole())
    [folder] = (cache / "patches").iterdir()
    with rank_lock(folder, 0):
        assert photo_patches([done], Whole())["done"].areas.tolist() == [54]
        with pytest.raises(LockedError, match="wait for it to end, or set SAMCP_CACHE to another folder"):
            photo_patches([done, new], Whole())
    assert photo_patches([done, new], Whole())["new"].areas.tolist() == [20]


@pytest.mark.usefixtures("cache")
def test_contents_of_files_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ImageFile] = []
    monkeypatch.setattr(
        "samcp.photo_patches.generate", lambda images, *args: (given.extend(images), generate(images, *args))
    )
    photo_patches([photo(tmp_path / f"{size}.png", (size, 4)) for size in (5, 6)], Whole())
    assert [image.data for image in given] == [None, None]


@pytest.mark.usefixtures("cache")
def test_failed_image_is_tried_again(tmp_path: Path) -> None:
    broken = ImageFile("a", str(tmp_path / "a.png"))
    assert "cannot be read" in photo_patches([broken], Whole())["a"]
    broken.path.write_bytes(b"no image")
    assert "its format is unknown" in photo_patches([broken], Whole())["a"]
    assert "its format is unknown" in photo_patches([broken], Whole())["a"]
    assert photo_patches([photo(broken.path, (2, 2))], Whole())["a"].areas.tolist() == [4]
