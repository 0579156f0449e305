"""The store's benchmark runs, small, and prints its tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def test_prints_ratios_and_memory(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = tmp_path_factory.mktemp("report")
    sizes = "--images 6 --patches 5 --height 60 --width 80 --rounds 2 --workers 1 8"
    command = [sys.executable, str(SCRIPT), "store", *sizes.split(), "--output", str(tmp_path), "--report", str(report)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SCRIPT.parents[1], check=False)
    assert result.returncode == 0, result.stderr
    for name in ("proposal_cache", "pickle per image", "json per image", "HDF5 group per image"):
        assert re.search(rf"^\| {name} +\| +\d+ \| +[\d.]+ \| +[\d.]+ \| +[\d.]+ \|$", result.stdout, re.MULTILINE)
    assert re.search(r"^\| proposal_cache / best of the others +\| +\d+\.\d\d \|", result.stdout, re.MULTILINE)
    assert re.search(
        r"^\| target +\| +at most 0.60 \| +at most 0.50 \| +at most 0.50 \| +\|$", result.stdout, re.MULTILINE
    )
    assert re.search(r"^\| 1 +\| +\d+\.\d+ \|", result.stdout, re.MULTILINE)
    assert not list(tmp_path.iterdir())
