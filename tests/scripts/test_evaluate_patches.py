"""scripts/evaluate_patches.py: table, json of all classes and errors."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proposal_cache import CacheWriter, PatchCache, Patches
from tests.samcp.data.datasets.test_custom import SIZE
from tests.scripts.test_check_dataset import beach, run
from tests.toy_datasets import panoptic_dataset, write_patches

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import evaluate_patches

__all__ = ["beach"]  # a fixture

evaluate = partial(run, evaluate_patches)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return folder and name of a dataset of four scenes, with a patch for every segment."""
    folder = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(folder, "toy_evaluate_patches") as name:
        yield folder, name


@pytest.fixture
def patched(beach):
    """Return a custom dataset of two images in all forms, with one patch of the whole image each."""
    whole = Patches.from_masks(np.ones((1, *SIZE), bool))
    write_patches(beach / "patches", "own", {"one": whole, "deep/two": whole})
    return beach


def table(text):
    """Return the cells of a table by row name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: cells for name, *cells in lines}


def test_patches_equal_to_segments(toy, tmp_path, monkeypatch, capsys):
    folder, name = toy
    out = tmp_path / "new" / "patches.json"
    assert evaluate(monkeypatch, "--dataset", name, "--patches", folder / "patches", "--output", out) == 0
    printed = capsys.readouterr().out
    found = table(printed)
    assert found[""] == ["objects", "mIoU", "mIoU>0.5", "MR 0.25", "MR 0.5", "MR 0.75"]
    assert found["things"] == ["12", "100.0", "100.0", "0.0", "0.0", "0.0"]
    assert found["stuff, merged"] == ["-", "100.0", "100.0", "0.0", "0.0", "0.0"]
    assert f"{name}: 4 images, 20 objects, 15.8 patches per image" in printed
    content = json.loads(out.read_text())
    assert content["images"] == 4
    assert content["generators"] == [{"name": "toy"}]
    assert content["groups"]["all"]["best_patch"]["MR 0.75"] == 0
    kinds = {one["name"]: one["is_thing"] for one in content["classes"]}
    assert kinds == {"disc": True, "square": True, "sky": False, "grass": False}
    assert sum(one["objects"] for one in content["classes"]) == 20


@pytest.mark.parametrize(
    ("name", "group", "objects"),
    [("own_labels", "stuff", 4), ("own_panoptic", "all", 4), ("own_instances", "things", 2)],
)
def test_all_forms_of_ground_truth(patched, tmp_path, monkeypatch, capsys, name, group, objects):
    files = ("--register", patched / "beach.yaml", "--register", patched / "kites.yaml")
    out = tmp_path / "out.json"
    assert evaluate(monkeypatch, *files, "--dataset", name, "--patches", patched / "patches", "--output", out) == 0
    assert table(capsys.readouterr().out)[group][0] == str(objects)
    kite = next(one for one in json.loads(out.read_text())["classes"] if one["name"] in ("kite", "dragon"))
    area = SIZE[0] * SIZE[1]
    assert kite["best_patch"]["mIoU"] == pytest.approx(100 * (240 + 228) / 2 / area)
    assert kite["best_patch"]["mIoU>0.5"] is None
    assert kite["best_patch"]["MR 0.25"] == 100


def test_plot(toy, tmp_path, monkeypatch, capsys):
    folder, name = toy
    plot = tmp_path / "new" / "recall.png"
    assert evaluate(monkeypatch, "--dataset", name, "--patches", folder / "patches", "--plot", plot) == 0
    assert f"recall curve: {plot}" in capsys.readouterr().out
    assert Image.open(plot).size[0] > 600
    assert "--plot" in evaluate(monkeypatch, "--dataset", name, "--patches", folder / "patches", "--plot", tmp_path)


def test_failed_images_are_counted_and_named(toy, tmp_path, monkeypatch, capsys):
    folder, name = toy
    whole = PatchCache(folder / "patches")
    with CacheWriter(tmp_path / "failed", {"name": "toy"}, name) as writer:
        writer.add_failure("002", "the image cannot be read")
        for key in ("001", "003", "004"):
            writer.add(key, whole[key])
    assert evaluate(monkeypatch, "--dataset", name, "--patches", tmp_path / "failed") == 0
    printed = capsys.readouterr().out
    assert "1 images count as missed, since their patches could not be generated" in printed
    assert table(printed)["all"] == ["20", "75.0", "100.0", "25.0", "25.0", "25.0"]


def test_limit(toy, monkeypatch, capsys):
    folder, name = toy
    assert evaluate(monkeypatch, "--dataset", name, "--patches", folder / "patches", "--limit", "2") == 0
    assert f"{name}: 2 images, 10 objects" in capsys.readouterr().out


def test_errors(toy, tmp_path, monkeypatch, capsys):
    folder, name = toy
    patches = ("--patches", folder / "patches")
    assert "error: there is no dataset 'toys'" in evaluate(monkeypatch, "--dataset", "toys", *patches)
    assert "gone.yaml" in run(
        evaluate_patches, monkeypatch, "--dataset", name, *patches, "--register", tmp_path / "gone.yaml"
    )
    gone = evaluate(monkeypatch, "--dataset", name, "--patches", tmp_path / "gone")
    assert "gone: no patch cache; make it with: python scripts/generate_sam_patches.py" in gone
    write_patches(tmp_path / "one", name, {"001": Patches.empty(60, 80)})
    assert "lacks 3 of the 4 images" in run(
        evaluate_patches, monkeypatch, "--dataset", name, "--patches", tmp_path / "one"
    )
    assert "a folder; name a file in it" in run(
        evaluate_patches, monkeypatch, "--dataset", name, *patches, "--output", tmp_path
    )
    (tmp_path / "file").touch()
    under = tmp_path / "file" / "a.json"
    assert "cannot create its folder" in run(
        evaluate_patches, monkeypatch, "--dataset", name, *patches, "--output", under
    )
    for option in ("--limit", "--workers"):
        assert evaluate(monkeypatch, "--dataset", name, *patches, option, "0") == 2
        assert f"argument {option}: must be a whole number, 1 or more, not '0'" in capsys.readouterr().err
