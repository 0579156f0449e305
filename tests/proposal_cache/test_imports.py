"""proposal_cache is usable without the packages of samcp, and imports PyTorch only for generators that need it."""

import subprocess
import sys

import pytest

from tests.proposal_cache.test_examples import MODULES

FOREIGN = {"detectron2", "samcp", "open_clip", "panopticapi"}
NEEDS_TORCH = (
    "proposal_cache.generators.backbone",
    "proposal_cache.generators.contours",
    "proposal_cache.generators.memory",
    "proposal_cache.generators.sam",
    "proposal_cache.torch_files",
)


@pytest.mark.parametrize("torch", [False, True], ids=["without torch", "with torch"])
def test_imports(torch: bool) -> None:
    modules = [name for name in MODULES if name.startswith(NEEDS_TORCH) == torch and not name.endswith("__main__")]
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "proposal_cache" in loaded
    assert not loaded & FOREIGN
    assert ("torch" in loaded) == torch
