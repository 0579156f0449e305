import shutil
from pathlib import Path

import pytest

from proposal_cache import CacheWriter
from tests.proposal_cache import toy_cache
from tests.proposal_cache.tool import SIZE, halves, write_json


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache.write(tmp_path_factory.mktemp("original") / "cache")


@pytest.fixture
def cache_path(tmp_path: Path, _original: Path) -> Path:
    """Copy of a cache of 25 images in 3 shards."""
    return shutil.copytree(_original, tmp_path / "cache")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with CacheWriter(tmp_path / "cache", {"name": "left-right", "version": 3}, "toy") as writer:
        writer.add("a", halves(5, predicted_iou=[0.5, 0.75]))
        writer.add("sub/b", halves(10))
        writer.add_failure("bad", "bad.png: the file is empty")
    return tmp_path / "cache"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """COCO json of the images of `cache`."""
    names = {7: "a.jpg", 9: "sub/b.jpg"}
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in names.items()]
    return write_json(
        tmp_path / "images.json", {"images": images, "categories": [{"id": 4, "name": "cat"}, {"id": 6, "name": "dog"}]}
    )
