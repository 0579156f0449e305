import shutil
from pathlib import Path

import pytest

from tests.proposal_cache import toy_cache


@pytest.fixture(scope="session")
def _original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache.write(tmp_path_factory.mktemp("original") / "cache")


@pytest.fixture
def cache_path(tmp_path: Path, _original: Path) -> Path:
    """A cache of 25 images in 3 shards, to do with as one likes."""
    return shutil.copytree(_original, tmp_path / "cache")
