"""CCP: conversion of its labels and registration."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from samcp.data.datasets.ccp.prepare import prepare_ccp
from samcp.data.datasets.ccp.register import CLASS_IDS, CLASSES, register_ccp
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError


@pytest.fixture
def ccp(tmp_path):
    """Register CCP under tmp_path, with one image per split whose label map has all labels of the release."""
    register_ccp(tmp_path)
    labels = np.arange(59, dtype=np.uint8)[None].repeat(4, 0)
    for split in ("train", "val"):
        for part in ("images", "annotations"):
            (tmp_path / "ccp" / part / split).mkdir(parents=True)
        Image.new("RGB", (59, 4)).save(tmp_path / "ccp" / "images" / split / "0001.jpg")
        Image.fromarray(labels).save(tmp_path / "ccp" / "annotations" / split / "0001.png")
    yield tmp_path / "ccp"
    register_ccp()


def test_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 16
    assert CLASSES[0] == "background"
    assert len(CLASS_IDS) == 59
    assert set(CLASS_IDS) == set(range(16))


def test_conversion_merges_classes(ccp):
    assert prepare_ccp(ccp) == {"train": "1 label maps", "val": "1 label maps"}
    [record] = DatasetCatalog.get("ccp_val")
    converted = read_label_map(record["sem_seg_file_name"])
    names = [CLASSES[i] for i in converted[0]]
    assert names[:7] == ["background", "accessories", "bag", "belt", "coat", "top", "dress"]  # 6: bodysuit
    assert names[58] == "shoes"  # wedges
    assert names[49] == "top"  # sweatshirt


def test_existing_label_maps_are_kept(ccp):
    prepare_ccp(ccp)
    file = ccp / "labels" / "val" / "0001.png"
    Image.fromarray(np.zeros((4, 59), np.uint8)).save(file)
    prepare_ccp(ccp)
    assert read_label_map(str(file)).max() == 0


def test_unknown_label(ccp):
    Image.fromarray(np.full((4, 59), 60, np.uint8)).save(ccp / "annotations" / "val" / "0001.png")
    with pytest.raises(DataError, match=r"val/0001\.png: has the label 60, but CCP's are 0\.\.58"):
        prepare_ccp(ccp)


def test_missing_label_maps(ccp):
    with pytest.raises(FileNotFoundError, match=r"ccp/labels/train is missing; scripts/prepare_ccp\.py"):
        DatasetCatalog.get("ccp_train")
