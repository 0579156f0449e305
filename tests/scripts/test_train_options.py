"""Options of the scripts that train the shipped parts: numbers that must be at least 1."""

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

OPTIONS = {
    "train_contours": ("--iterations", "--batch", "--pair-images", "--limit"),
    "train_small_sam": (
        "--iterations",
        "--batch",
        "--points",
        "--image-size",
        "--save-every",
        "--limit",
        "--points-per-side",
    ),
    "train_words": ("--min-size",),
}


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


@pytest.mark.parametrize("script", OPTIONS)
@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_counts_must_be_at_least_1(script, value, monkeypatch, capsys):
    for option in OPTIONS[script]:
        monkeypatch.setattr(sys, "argv", [script, option, value])
        with pytest.raises(SystemExit):
            importlib.import_module(script)._parse_arguments()
        assert f"argument {option}: must be a whole number, 1 or more, not '{value}'" in capsys.readouterr().err


def test_every_nth_image_must_be_at_least_1(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_words", "--dataset", "coco_2017_train:0"])
    with pytest.raises(SystemExit):
        importlib.import_module("train_words")._parse_arguments()
    assert "argument --dataset: must be a whole number, 1 or more, not '0'" in capsys.readouterr().err
