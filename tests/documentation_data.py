"""Checkout with tiny data, in which the commands of the documentation run in seconds."""

import re
import shutil
from pathlib import Path

import numpy as np
import skimage.data
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from skimage.transform import resize

from proposal_cache import ContourGenerator
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from samcp.data.files import write_image, write_json, write_label_map, write_panoptic_ids
from tests.documented_commands import ROOT, blocks
from tests.samcp.data.datasets import test_ade20k, test_cityscapes, test_cod10k, test_pascal_part

_SIZE = (64, 96)
_SPLITS = {"train": 5, "val": 2}
_PHOTO = (resize(skimage.data.coffee(), _SIZE) * 255).astype(np.uint8)
_HALVES = np.repeat(np.arange(2, dtype=np.uint8), 48)[None].repeat(_SIZE[0], 0)
_PERSON, _SKY = 1, 187  # category ids


def make_checkout(folder: Path) -> None:
    """Write what the commands need: photographs, datasets of some images, and configs of two iterations on a CPU."""
    for name in ("projects", "proposal_cache", "weights"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    for config in (folder / "configs").rglob("*.yaml"):
        text = re.sub(r"MAX_ITER: \d+", "MAX_ITER: 2", config.read_text())
        text = re.sub(r"MIN_SIZE_TRAIN: \[.*\]", "MIN_SIZE_TRAIN: [64]", text)
        text = re.sub(r"MIN_SIZE_TEST: \d+", "MIN_SIZE_TEST: 64", text)
        config.write_text(re.sub(r"WEIGHTS: \S*detectron2://.*", 'WEIGHTS: ""', text))
    _replace(folder / "configs" / "_base_" / "samcp.yaml", "\nMODEL:\n", "\nMODEL:\n  DEVICE: cpu\n")
    _replace(folder / "scripts" / "prepare_synthetic.py", "default=300", "default=4")
    _replace(folder / "scripts" / "prepare_synthetic.py", "default=40", "default=2")
    _replace(folder / "scripts" / "prepare_miniature.py", "default=600", "default=3")
    _replace(folder / "scripts" / "prepare_miniature.py", "default=100", "default=1")
    write_image(folder / "coffee.jpg", skimage.data.coffee(), "JPEG")
    write_image(folder / "photos" / "coffee.jpg", _PHOTO, "JPEG")
    _write_beach(folder / "beach")
    _write_datasets(folder / "datasets")
    _write_patches(folder / "datasets" / "coco" / "train2017", folder / "CACHE")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old!r}"
    path.write_text(text.replace(old, new))


def _write_beach(folder: Path) -> None:
    """Write the dataset of docs/datasets.md, "Your own data", with its yaml file and patches."""
    [description] = [block.text for block in blocks("docs/datasets.md") if block.text.startswith("# beach/beach.yaml")]
    for split, count in _SPLITS.items():
        for i in range(count):
            write_image(folder / split / f"{i}.jpg", _PHOTO, "JPEG")
            write_label_map(folder / f"{split}_labels" / f"{i}.png", _HALVES + i % 2)
        _write_patches(folder / split, folder / "patches" / split)
    (folder / "beach.yaml").write_text(description)


def _write_patches(images: Path, cache: Path) -> None:
    generate(from_folder(images), ContourGenerator(patches=20), cache, images.name, progress=False)


def _write_datasets(folder: Path) -> None:
    """Write some images of each dataset in the layout of its release."""
    for split, count in _SPLITS.items():
        _write_coco(folder / "coco", split, count)
        for i in range(count):
            write_image(folder / "camvid" / split / f"{i}.png", _PHOTO, "PNG")
            write_label_map(folder / "camvid" / f"{split}annot" / f"{i}.png", _HALVES)
            write_image(folder / "ccp" / "images" / split / f"{i}.jpg", _PHOTO, "JPEG")
            write_label_map(folder / "ccp" / "annotations" / split / f"{i}.png", _HALVES * 5)
            write_image(folder / "bsds500" / "images" / split / f"{i}.jpg", _PHOTO, "JPEG")
            write_label_map(folder / "bsds500" / "segmentations" / split / f"{i}_0.png", _HALVES + 1)
    test_ade20k.write_release(folder / "ADEChallengeData2016", "ADE_val_00000001")
    test_cityscapes.write_release(folder / "cityscapes", "frankfurt_000000_000294")
    for split in ("Train", "Test"):
        objects = ((test_cod10k.LEFT, test_cod10k.RED), (test_cod10k.RIGHT, test_cod10k.BLUE))
        test_cod10k.write_image(folder / "cod10k" / split, f"COD10K-CAM-3-Flying-65-Owl-{len(split)}", *objects)
    pascal, mask = folder / "pascal_part", test_pascal_part.box_mask(5, 5, 30, 25)
    lists = pascal / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, name in (("train", "2008_000002"), ("val", "2010_000010")):
        test_pascal_part.write_image(pascal, name, ("cat", mask, test_pascal_part.CAT))
        (lists / f"{split}.txt").write_text(f"{name}\n")


def _write_coco(folder: Path, split: str, count: int) -> None:
    """Write images of a person on the left and sky on the right."""
    images, segments, instances = [], [], []
    for i in range(1, count + 1):
        write_image(folder / f"{split}2017" / f"{i}.jpg", _PHOTO, "JPEG")
        write_panoptic_ids(folder / f"panoptic_{split}2017" / f"{i}.png", _HALVES.astype(np.int32) + 1)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": _SIZE[0], "width": _SIZE[1]})
        common = {"iscrowd": 0, "area": 48 * 64}
        infos = [
            {"id": 1, "category_id": _PERSON, "bbox": [0, 0, 48, 64], **common},
            {"id": 2, "category_id": _SKY, "bbox": [48, 0, 48, 64], **common},
        ]
        segments.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
        polygon = [[0, 0, 48, 0, 48, 64, 0, 64]]
        instances.append({**infos[0], "id": i, "image_id": i, "segmentation": polygon})
    categories = [{key: c[key] for key in ("id", "name", "isthing")} for c in COCO_CATEGORIES]
    things = [category for category in categories if category["isthing"]]
    for kind, annotations, classes in (("panoptic", segments, categories), ("instances", instances, things)):
        content = {"images": images, "annotations": annotations, "categories": classes}
        write_json(folder / "annotations" / f"{kind}_{split}2017.json", content)
