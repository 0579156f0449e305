"""The examples in the package's docstrings run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import proposal_cache
from tests.proposal_cache.small_sam import small_sam

OPTIONAL = {"proposal_cache.generators.sam2"}  # needs the package sam2
MODULES = sorted(m.name for m in pkgutil.walk_packages(proposal_cache.__path__, "proposal_cache."))


@pytest.mark.parametrize("name", [name for name in MODULES if name not in OPTIONAL and not name.endswith("__main__")])
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples may use `np`, the public names of the package, `sam` and `image`, and write to the current directory."""
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    names = {"np": np, "rle": proposal_cache.rle, "image": image, "sam": small_sam()}
    names |= {public: getattr(proposal_cache, public) for public in proposal_cache.__all__}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    assert doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=options).failed == 0
