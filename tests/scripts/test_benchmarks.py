"""Benchmarks of data, model and scaling, at a small size."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def output(script: str, *arguments: object) -> str:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=SCRIPTS.parent, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_data_prints_stages_and_loading_rates() -> None:
    printed = output("benchmark_data.py", "--patches", 5, "--images", 4, "--workers", 0, 1)
    for part in ("load the patches", "targets", "whole image"):
        assert re.search(rf"^{part} +\d+\.\d+$", printed, re.MULTILINE)
    assert re.search(r"^dense: decode all masks +[\d.]+ +=? ?[\d.]+ x ours$", printed, re.MULTILINE)
    assert re.search(r"^ +1 +[\d.]+ +[\d.]+$", printed, re.MULTILINE)


def test_model_prints_parts_comparisons_and_scaling() -> None:
    sizes = ("--size", 96, 128, "--patches", 6, "--classes", 8, "--repeats", 1)
    printed = output("benchmark_model.py", *sizes, "--more-patches", 2, 4, 8, "--more-classes")
    for row in ("backbone", "decoder", "everything after the FPN"):
        assert re.search(rf"^{row} +\d+ +[\d.]+$", printed, re.MULTILINE)
    assert re.search(r"^SAM-CP / R50-FPN alone +[\d.]+$", printed, re.MULTILINE)
    assert "Mask2Former-R50" in printed  # its times, or how to install its dependencies
    assert "6 masks into 100 queries" in printed
    assert len(re.findall(r"^fitted: ", printed, re.MULTILINE)) == 1


def test_scaling_prints_rates_and_sizes() -> None:
    printed = output(
        "benchmark_scaling.py", "workers", "--engine", "local", "--images", 4, "--seconds", 0, "--workers", 1
    )
    assert re.search(r"^local +1 +[\d.]+ +0\.000$", printed, re.MULTILINE)
    printed = output("benchmark_scaling.py", "index", "--images", 3000)
    assert re.search(r"^manifest\.json +[\d.]+ MB per million images$", printed, re.MULTILINE)
    assert len(re.findall(r" MB peak, ", printed)) == 4
