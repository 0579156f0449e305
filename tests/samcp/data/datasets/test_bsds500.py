"""BSDS500: registration of the regions of all annotators."""

import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp.data.datasets.bsds500.register import register_bsds500
from samcp.data.ground_truth import read_ground_truth
from samcp.data.validation.dataset import check_dataset
from samcp.errors import DataError


@pytest.fixture
def bsds500(tmp_path):
    """Register BSDS500 under tmp_path, with one validation image that two people have segmented."""
    register_bsds500(tmp_path)
    images, segmentations = (tmp_path / "bsds500" / part / "val" for part in ("images", "segmentations"))
    images.mkdir(parents=True)
    segmentations.mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(images / "12.jpg")
    halves = np.ones((4, 6), np.uint8)
    halves[:, 3:] = 2
    Image.fromarray(halves).save(segmentations / "12_0.png")
    Image.fromarray(np.full((4, 6), 300, np.uint16)).save(segmentations / "12_1.png")
    yield tmp_path / "bsds500"
    register_bsds500()


def test_records(bsds500):
    [record] = DatasetCatalog.get("bsds500_val")
    assert (record["image_id"], record["height"], record["width"]) == ("12", 4, 6)
    assert [annotation["bbox"] for annotation in record["annotations"]] == [[0, 0, 3, 4], [3, 0, 6, 4], [0, 0, 6, 4]]
    truth = read_ground_truth(record, (4, 6), num_classes=1, ignore_label=255)
    assert truth.masks.areas.tolist() == [12, 12, 24]
    assert truth.is_thing.all()
    assert MetadataCatalog.get("bsds500_val").thing_classes == ["region"]


def test_the_same_region_by_two_people_is_no_duplicate(bsds500):
    shutil.copy(bsds500 / "segmentations/val/12_0.png", bsds500 / "segmentations/val/12_2.png")
    report = check_dataset("bsds500_val")
    assert [one.segments for one in report.classes] == [5]
    assert report.problems == []


def test_missing_files_are_named(bsds500):
    with pytest.raises(FileNotFoundError, match=r"bsds500/images/train is missing"):
        DatasetCatalog.get("bsds500_train")
    for file in (bsds500 / "segmentations" / "val").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"12_\*\.png"):
        DatasetCatalog.get("bsds500_val")
