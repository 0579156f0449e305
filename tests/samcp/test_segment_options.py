"""samcp segment: thresholds, words that are unknown or not found, and the output folder."""

import json
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from samcp.data.ground_truth import read_label_map
from tests.conftest import Synthetic
from tests.samcp.test_segment import run, save_model


def test_instances_below_the_threshold_are_not_written(synthetic: Synthetic, tmp_path: Path) -> None:
    where = (synthetic.folder / "val" / "val_00000.jpg", "--weights", save_model(tmp_path), "--task", "instance")
    scores = {}
    for threshold in (0, 1):
        run(*where, "--output", tmp_path / "out", "--confidence-threshold", threshold)
        scores[threshold] = json.loads((tmp_path / "out" / "instances.json").read_text())
        categories = json.loads((tmp_path / "out" / "classes.json").read_text())
        assert [category["id"] for category in categories] == list(range(len(categories)))
    assert len(scores[0]) > 10
    assert scores[1] == []


def test_confidence_of_semantic_maps(synthetic: Synthetic, tmp_path: Path) -> None:
    where = (synthetic.folder / "val" / "val_00000.jpg", "--weights", save_model(tmp_path), "--task", "semantic")
    for threshold, unlabeled in ((0, False), (1, True)):
        run(*where, "--output", tmp_path / "out", "--confidence-threshold", threshold)
        labels = read_label_map(str(tmp_path / "out" / "semantic" / "val_00000.png"))
        assert (labels == 255).all() == unlabeled
    (tmp_path / "paper").mkdir()
    paper = save_model(tmp_path / "paper", MODEL__SAMCP__TEST__MERGE="paper")
    with pytest.raises(SystemExit, match="--confidence-threshold has no effect on the semantic maps of .*MERGE paper"):
        run(*where[:2], paper, *where[3:], "--output", tmp_path / "out", "--confidence-threshold", 0.5)


def test_words_that_are_not_found_are_named(
    synthetic: Synthetic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_model(tmp_path, MODEL__SAMCP__TEST__SCORE_THRESHOLD=0.02)
    where = (synthetic.folder / "val" / "val_00000.jpg", "--weights", weights, "--output", tmp_path / "out")
    run(*where, "--words", "disc, ring, star")
    printed = capsys.readouterr()
    [line] = [line for line in (printed.out + printed.err).splitlines() if "val_00000: " in line]
    for name in ("disc", "ring", "star"):
        assert name in line


def test_unknown_classes_of_a_packaged_vocabulary_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMCP_CACHE", str(tmp_path / "cache"))
    Image.fromarray(data.chelsea()).resize((90, 60)).save(tmp_path / "cat.png")
    run(tmp_path / "cat.png", "--words", "pascal_part", "--task", "semantic", "--output", tmp_path / "out")
    assert "does not know or distinguish 90 of the 93 classes of pascal_part, such as" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "classes.json").read_text())) == 3
    with pytest.raises(SystemExit, match=r"unknown without a text encoder: 'blorp'.*; and 2 more; use other words"):
        run(tmp_path / "cat.png", "--words", "blorp,qqa,qqb,qqc,qqd,qqe,qqf", "--output", tmp_path / "out")


def test_output_that_cannot_be_created(synthetic: Synthetic, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    where = (synthetic.folder / "val", "--weights", save_model(tmp_path), "--output", tmp_path / "file" / "out")
    with pytest.raises(SystemExit, match=r"error: --output .*file/out cannot be created: Not a directory"):
        run(*where)
