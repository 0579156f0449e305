"""scripts/visualize_panels.py and scripts/visualize_tsne.py."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Synthetic
from tests.samcp.test_segment import save_model

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import visualize_panels
import visualize_tsne

KEYS = [f"val_{number:05d}" for number in range(4)]


@pytest.fixture
def run(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a script on the drawn scenes with a model of random weights."""
    weights = save_model(tmp_path)

    def call(script, *arguments):
        data = ("--weights", weights, "--dataset", "synthetic_val", "--patches", synthetic.val_patches)
        monkeypatch.setattr(sys, "argv", ["script", *map(str, (*data, "--output", tmp_path / "out", *arguments))])
        script.main()
        return tmp_path / "out"

    return call


def test_first_images(run, capsys):
    out = run(visualize_panels, "--limit", 2)
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "val_00000.jpg", "val_00001.jpg"]
    assert str(out / "index.html") in capsys.readouterr().out
    page = (out / "index.html").read_text()
    captions = re.findall("<figcaption>(.*?)</figcaption>", page)
    assert captions == ["image", "patches", "prediction", "ground truth"] * 2
    width, height = Image.open(out / "val_00000.jpg").size
    assert width > 3 * height


def test_images_by_key(run):
    out = run(visualize_panels, "--images", KEYS[3], KEYS[1])
    assert {path.stem for path in out.glob("*.jpg")} == {KEYS[3], KEYS[1]}


def test_best_and_worst_images(run, capsys):
    out = run(visualize_panels, "--best", 1, "--worst", 2)
    printed = [float(quality) for quality in re.findall(r"^PQ +([\d.]+)", capsys.readouterr().out, re.MULTILINE)]
    best, *worst = printed
    assert worst == sorted(worst)
    assert best >= worst[-1]
    headings = re.findall("<h2>(.*?)</h2>", (out / "index.html").read_text())
    assert headings == ["Best of 4 images", "Worst of 4 images"]


def test_unknown_key(run):
    for script in (visualize_panels, visualize_tsne):
        with pytest.raises(SystemExit, match="error: --images beach: no such image; the first one is val_00000"):
            run(script, "--images", "beach")


def test_config_file_instead_of_that_of_the_checkpoint(run):
    with pytest.raises(SystemExit, match=r"not a checkpoint of this config's model"):
        run(visualize_panels, "--config-file", "miniature/demo.yaml", "--device", "cpu", "--limit", 1)
    out = run(visualize_panels, "--config-file", "miniature/panoptic.yaml", "--device", "cpu", "--limit", 1)
    assert (out / "val_00000.jpg").exists()


def test_tsne_of_all_images_and_of_each(run, capsys):
    out = run(visualize_tsne, "--limit", 2)
    assert {path.stem for path in out.glob("*.png")} == {"all", "val_00000", "val_00001"}
    lines = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    rows = {cells[1]: cells[2:-1] for cells in lines if len(cells) == 8 and cells[2].isdigit()}
    assert list(rows) == ["all 2 images", "val_00000", "val_00001"]
    assert int(rows["all 2 images"][0]) == int(rows["val_00000"][0]) + int(rows["val_00001"][0])
    scores = [float(score) for cells in rows.values() for score in cells[1:] if score != "–"]
    assert scores
    assert all(-1 <= score <= 1 for score in scores)
