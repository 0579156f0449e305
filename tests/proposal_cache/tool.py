"""Run the command line in a test, and small inputs for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import Patches
from proposal_cache.cli import main

SIZE = (12, 20)  # height, width


def halves(at: int, **columns: Any) -> Patches:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :, :at], masks[1, :, at:] = True, True
    return Patches.from_masks(masks, **columns)


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


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
