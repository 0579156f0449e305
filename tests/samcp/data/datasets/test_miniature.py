"""Miniature dataset: reproducible files, unseen classes, parts, registration, evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import rgb2id
from PIL import Image

from proposal_cache import CacheWriter, Patches, image_key
from samcp.command_line import training_parser
from samcp.commands import train
from samcp.data.datasets.miniature.prepare import draw_split, make_miniature_dataset
from samcp.data.datasets.miniature.register import register_miniature
from samcp.errors import DataError
from samcp.miniature.scenes import STYLES
from samcp.miniature.world import CLASSES, PART_CLASSES, SEEN, THINGS, UNSEEN
from samcp.vocabulary import Vocabulary

CONFIG = str(Path(__file__).parents[4] / "configs" / "_base_" / "miniature.yaml")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    make_miniature_dataset(folder, 3, 2, seed=1)
    return folder


@pytest.fixture
def dataset(files: Path) -> Iterator[Path]:
    register_miniature(files)
    yield files
    register_miniature()  # restore the default folder


def ids_of(record: dict) -> np.ndarray:
    return rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))


def test_image_depends_on_seed_split_and_index_only(files: Path, tmp_path: Path) -> None:
    make_miniature_dataset(tmp_path, 2, 1, seed=1)
    for path in ("train/train_00001.jpg", "panoptic_train/train_00001.png", "tiny_val/tiny_val_00000.jpg"):
        assert (tmp_path / path).read_bytes() == (files / path).read_bytes()
    images = [(files / split / f"{split}_00000.jpg").read_bytes() for split in STYLES]
    assert len(set(images)) == len(STYLES)


def test_second_call_keeps_files_and_rejects_other_arguments(files: Path) -> None:
    before = (files / "train" / "train_00000.jpg").stat().st_mtime_ns
    make_miniature_dataset(files, 3, 2, seed=1)
    assert (files / "train" / "train_00000.jpg").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="has a miniature dataset made with .*'num_train': 3.*another folder"):
        make_miniature_dataset(files, 4, 2, seed=1)


@pytest.mark.parametrize("split", STYLES)
def test_registered_as_coco_panoptic_dataset(dataset: Path, split: str) -> None:
    vocabulary = Vocabulary.of_dataset(f"miniature_{split}")
    assert vocabulary.names == (CLASSES if split in ("open_val", "shifted_val") else SEEN)
    assert vocabulary.is_thing == tuple(name in THINGS for name in vocabulary.names)
    records = DatasetCatalog.get(f"miniature_{split}")
    assert len(records) == (3 if split == "train" else 2)
    for record, (_, scene) in zip(records, draw_split(split, 2, seed=1), strict=False):
        ids = ids_of(record)
        assert len(record["segments_info"]) == len(scene.objects)
        for segment, drawn in zip(record["segments_info"], scene.objects, strict=True):
            np.testing.assert_array_equal(ids == segment["id"], drawn.mask)
            assert vocabulary.names[segment["category_id"]] == drawn.name


def test_training_annotations_name_no_unseen_class(dataset: Path) -> None:
    for path in (dataset / "annotations").glob("*_train.json"):
        names = {category["name"] for category in json.loads(path.read_text())["categories"]}
        assert names
        assert not {name for name in names for unseen in UNSEEN if unseen in name.split()}, path


@pytest.mark.parametrize("split", ["train", "val"])
def test_parts_lie_inside_the_things_of_the_same_image_and_cover_them(dataset: Path, split: str) -> None:
    parts = MetadataCatalog.get(f"miniature_parts_{split}")
    assert tuple(parts.thing_classes) == PART_CLASSES
    assert parts.image_root == MetadataCatalog.get(f"miniature_{split}").image_root
    pairs = zip(DatasetCatalog.get(f"miniature_{split}"), DatasetCatalog.get(f"miniature_parts_{split}"), strict=True)
    for whole, divided in pairs:
        ids, part_ids = ids_of(whole), ids_of(divided)
        things = [segment["id"] for segment in whole["segments_info"] if segment["isthing"]]
        np.testing.assert_array_equal(np.isin(ids, things), part_ids > 0)
        for segment in divided["segments_info"]:
            (owner,) = np.unique(ids[part_ids == segment["id"]])
            category = next(s["category_id"] for s in whole["segments_info"] if s["id"] == owner)
            assert PART_CLASSES[segment["category_id"]].startswith(SEEN[category])


def test_general_annotations_have_the_parts_and_the_things(dataset: Path) -> None:
    names = MetadataCatalog.get("miniature_parts_general_train").thing_classes
    assert tuple(names[: len(PART_CLASSES)]) == PART_CLASSES
    general = DatasetCatalog.get("miniature_parts_general_train")
    both = [DatasetCatalog.get(f"miniature_{kind}train") for kind in ("", "parts_")]
    for record, *others in zip(general, *both, strict=True):
        expected = sorted(s["area"] for other in others for s in other["segments_info"] if s["isthing"])
        areas = Patches.from_rles(256, 256, [a["segmentation"]["counts"].encode() for a in record["annotations"]]).areas
        assert sorted(areas.tolist()) == expected


@pytest.mark.parametrize("name", ["miniature_open_val", "miniature_parts_val"])
def test_oracle_of_exact_patches_is_perfect(dataset: Path, tmp_path: Path, name: str) -> None:
    """Patches that are the parts and the stuff of each scene build every segment."""
    root = MetadataCatalog.get(name).image_root
    records = DatasetCatalog.get(name)
    with CacheWriter(tmp_path / "patches", {"name": "exact"}, dataset=name) as writer:
        scenes = draw_split("val" if "parts" in name else "open_val", 2, seed=1)
        for record, (_, scene) in zip(records, scenes, strict=True):
            masks = [mask for drawn in scene.objects for mask in (drawn.parts or {"": drawn.mask}).values()]
            writer.add(image_key(record["file_name"], root), Patches.from_masks(np.array(masks)))
    overrides = ["DATASETS.TRAIN", repr((name,)), "DATASETS.TEST", repr((name,)), "INPUT.MIN_SIZE_TEST", "256"]
    overrides += ["DATASETS.PATCHES_TEST", repr((str(tmp_path / "patches"),)), "OUTPUT_DIR", str(tmp_path / "run")]
    options = ["--config-file", CONFIG, "--eval-only", *overrides, "TEST.ORACLE", "True"]
    results = train.run(training_parser(None).parse_args(options))
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100, abs=0.5)
    assert results["segm"]["AP"] > 95
