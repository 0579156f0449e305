import shutil
from pathlib import Path

import pytest

from tests.proposal_cache import toy_cache
from tests.proposal_cache.tool import halves, write_annotations, write_cache


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache.write(tmp_path_factory.mktemp("original") / "cache")


@pytest.fixture
def cache_path(tmp_path: Path, _original: Path) -> Path:
    """Copy of a cache of 25 images in 3 shards."""
    return shutil.copytree(_original, tmp_path / "cache")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    images = {"a": halves(5, predicted_iou=[0.5, 0.75]), "sub/b": halves(10)}
    failures = [("bad", "bad.png: the file is empty")]
    return write_cache(tmp_path / "cache", {"name": "left-right", "version": 3}, images, failures=failures)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """COCO json of the images of `cache`."""
    categories = [{"id": 4, "name": "cat"}, {"id": 6, "name": "dog"}]
    return write_annotations(tmp_path / "images.json", {7: "a.jpg", 9: "sub/b.jpg"}, categories=categories)
