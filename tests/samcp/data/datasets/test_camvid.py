"""CamVid as Detectron2 sees it, on an image written here."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp.data.datasets.camvid import register_camvid
from samcp.data.vocabulary import Vocabulary


@pytest.fixture
def camvid(tmp_path):
    """CamVid registered at tmp_path instead of where the environment has it."""
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


def test_a_missing_folder_is_named(camvid):
    with pytest.raises(FileNotFoundError, match=r"camvid/images/train is not there"):
        DatasetCatalog.get("camvid_train")
