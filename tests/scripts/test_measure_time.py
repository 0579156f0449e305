"""scripts/measure_time.py (Table 11)."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Synthetic
from tests.samcp.test_segment import save_model

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import measure_time


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_time.py", *map(str, arguments)])
    measure_time.main()


def test_times_of_stages_add_up(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ("--images", synthetic.folder / "val", "--limit", 2)
    run(monkeypatch, "--weights", save_model(tmp_path), *images, "--generator", "contours")
    printed = capsys.readouterr().out
    rows = {name: float(mean) for name, mean in re.findall(r"^\| ([a-z ]+?) +\| +([\d.]+) \|", printed, re.MULTILINE)}
    stages = ("image and patch encoder", "decoder and scores", "segmentations")
    assert rows["all but patches"] == pytest.approx(sum(rows[stage] for stage in stages), abs=0.002)
    assert rows["whole"] == pytest.approx(rows["patches"] + rows["all but patches"], abs=0.002)
    assert re.search(r"2 images, \d+ patches per image; CPU .*, peak memory of the process [\d.]+ GiB", printed)


def test_classes_and_size_are_those_of_a_config(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []
    monkeypatch.setattr("samcp.commands.measure_time.time_image", lambda *args: timed.append(args) or ([0.0] * 6, 1))
    config = tmp_path / "own.yaml"
    base = Path(__file__).parents[2] / "configs/miniature/panoptic.yaml"
    config.write_text(f"_BASE_: {base}\nDATASETS:\n  TEST: [ade20k_panoptic_val]\nINPUT:\n  MIN_SIZE_TEST: 80\n")
    images = ("--images", synthetic.folder / "val", "--limit", 1)
    run(monkeypatch, "--weights", save_model(tmp_path), *images, "--generator", "contours", "--config-file", config)
    predictor, _, _, classes = timed[-1]
    assert predictor.augmentations.augs[0].short_edge_length == (80, 80)
    assert len(classes.names) == 150


def test_sam_requires_checkpoint(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--generator sam needs --checkpoint FILE"):
        run(monkeypatch, "--weights", save_model(tmp_path), "--images", synthetic.folder / "val")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_cuda_without_gpu(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ("--images", synthetic.folder / "val", "--generator", "contours")
    with pytest.raises(SystemExit, match="error: device 'cuda' is not available; try cpu"):
        run(monkeypatch, "--weights", save_model(tmp_path), *images, "--device", "cuda")


def test_limit_is_positive(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--weights", "unused", "--images", synthetic.folder / "val", "--limit", 0)
