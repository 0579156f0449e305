"""Shipped weights: the table in weights/README.md lists every file with its checksum, and the files are small."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from samcp.contours.dataset import find_images
from samcp.contours.training import ContourSchedule, ContourTrainer

WEIGHTS = Path(__file__).parent.parent / "weights"
DATASETS = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def test_table_lists_every_file_with_its_checksum() -> None:
    table = dict(
        re.findall(r"^\| `(\S+\.safetensors)` .*\| `([0-9a-f]{64})` \|$", (WEIGHTS / "README.md").read_text(), re.M)
    )
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in WEIGHTS.glob("*.safetensors")}
    assert table == files


def test_sizes() -> None:
    sizes = {file.name: file.stat().st_size for file in WEIGHTS.glob("*.safetensors")}
    assert sizes["contours.safetensors"] <= 10e6
    assert sum(sizes.values()) <= 40e6


@pytest.mark.slow
@pytest.mark.skipif(not (DATASETS / "bsds500").is_dir(), reason="DETECTRON2_DATASETS has no BSDS500")
def test_first_iterations_of_contours_repeat_the_recorded_curve(tmp_path: Path) -> None:
    """BSDS500, CCP and CamVid are read as scripts/train_contours.py does; takes three minutes."""
    recorded = json.loads((WEIGHTS / "contours_curve.jsonl").read_text().splitlines()[0])
    trainer = ContourTrainer(find_images(DATASETS, "train"), ContourSchedule(), tmp_path)
    iteration, losses = next(iter(trainer.run(workers=1)))
    assert iteration == recorded["iteration"] == 200
    assert losses["boundary"] == pytest.approx(recorded["boundary"], rel=0.05)
    assert losses["embedding"] == pytest.approx(recorded["embedding"], rel=0.05)
