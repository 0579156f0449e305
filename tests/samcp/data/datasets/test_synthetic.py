"""Synthetic dataset: reproducible files, exact masks, COCO's layout."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import rgb2id
from PIL import Image

from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
from samcp.data.datasets.synthetic.register import register_synthetic
from samcp.data.datasets.synthetic.scenes import STUFF, THINGS, draw_scene
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

SIZE = (64, 96)


@pytest.fixture
def dataset(tmp_path):
    make_synthetic_dataset(tmp_path, 3, 2, SIZE, seed=1)
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_gives_the_same_files(dataset, tmp_path_factory):
    again, other = tmp_path_factory.mktemp("again"), tmp_path_factory.mktemp("other")
    make_synthetic_dataset(again, 3, 2, SIZE, seed=1)
    make_synthetic_dataset(other, 3, 2, SIZE, seed=2)
    assert contents(again) == contents(dataset)
    assert contents(other)["train/train_00000.jpg"] != contents(dataset)["train/train_00000.jpg"]


def test_second_call_keeps_files_and_rejects_other_arguments(dataset):
    (dataset / "train" / "train_00000.jpg").write_bytes(b"touched")
    make_synthetic_dataset(dataset, 3, 2, SIZE, seed=1)
    assert (dataset / "train" / "train_00000.jpg").read_bytes() == b"touched"
    with pytest.raises(DataError, match="'seed': 1.*'seed': 2.*another folder"):
        make_synthetic_dataset(dataset, 3, 2, SIZE, seed=2)


def test_segments_partition_the_scene():
    seen = set()
    for seed in range(30):
        image, segments = draw_scene(np.random.default_rng(seed), *SIZE)
        assert image.shape == (*SIZE, 3)
        assert image.dtype == np.uint8
        cover = np.sum([segment.mask for segment in segments], axis=0)
        assert cover.max() == 1
        assert (cover == 0).mean() < 0.1  # the void box
        seen |= {segment.name for segment in segments} | {"crowd" for segment in segments if segment.crowd}
    assert seen == {*THINGS, *STUFF, "crowd"}


def test_things_have_two_colours_independent_of_the_class():
    """Regions of one colour are therefore not whole objects."""
    image, segments = draw_scene(np.random.default_rng(3), 160, 224)
    things = [s for s in segments if s.name in THINGS and not s.crowd]
    for thing in things:
        colors = image[thing.mask].astype(int)
        first = colors[0]
        other_color = np.abs(colors - first).sum(1) > 100
        assert 0.05 < other_color.mean() < 0.95


def test_registered_as_coco_panoptic_dataset(dataset):
    register_synthetic(dataset)
    metadata = MetadataCatalog.get("synthetic_train")
    vocabulary = Vocabulary.of_dataset("synthetic_train")
    assert vocabulary.names == (*THINGS, *STUFF)
    assert vocabulary.is_thing == (True,) * len(THINGS) + (False,) * len(STUFF)
    assert metadata.evaluator_type == "coco_panoptic_seg"

    records = DatasetCatalog.get("synthetic_train")
    assert len(records) == 3
    assert len(DatasetCatalog.get("synthetic_val")) == 2
    for record in records:
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        assert ids.shape == SIZE
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in record["segments_info"]}
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert mask.sum() == segment["area"]
            assert segment["isthing"] == vocabulary.is_thing[segment["category_id"]]


def test_instances_equal_the_things_of_the_panoptic_png(dataset):
    register_synthetic(dataset)
    metadata = MetadataCatalog.get("synthetic_train")
    annotations = json.loads(Path(metadata.json_file).read_text())["annotations"]
    for record in DatasetCatalog.get("synthetic_train"):
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        things = [s for s in record["segments_info"] if s["isthing"]]
        instances = [a for a in annotations if a["image_id"] == record["image_id"]]
        assert len(things) == len(instances)
        for segment, instance in zip(things, instances, strict=True):
            assert metadata.thing_dataset_id_to_contiguous_id[instance["category_id"]] == segment["category_id"]
            np.testing.assert_array_equal(mask_util.decode(instance["segmentation"]), ids == segment["id"])
            np.testing.assert_array_equal(mask_util.toBbox(instance["segmentation"]), instance["bbox"])


def test_second_registration_replaces_the_first(dataset, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_synthetic_dataset(other, 1, 1, SIZE)
    register_synthetic(dataset)
    register_synthetic(other)
    assert len(DatasetCatalog.get("synthetic_train")) == 1
    assert MetadataCatalog.get("synthetic_train").image_root == str(other / "train")
