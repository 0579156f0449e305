"""Conversion of COD10K's masks to COCO instance jsons of 69 classes."""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samcp.data.datasets.conversion import check_count, convert_and_keep, describe_segments, lists_images
from samcp.data.files import write_json
from samcp.data.ground_truth import read_picture
from samcp.data.image_io import read_image_size
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

_CLASSES = Vocabulary.load("cod10k").names
_IMAGES = {"train": 3040, "test": 2026}  # images with camouflaged animals
# COD10K-CAM-1-Aquatic-13-Pipefish-4: number and name of the super-class, of the class, and number of the image.
_NAME = re.compile(r"COD10K-CAM-\d+-[^-]+-(\d+)-[^-]+-\d+")
_FOREGROUND = 127  # object masks are smoothed; brighter pixels are foreground
_MIN_SHARE = 0.01  # of the foreground; smaller regions are blends of two instances' colours


def prepare_cod10k(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the jsons beside the release; skip a json that lists exactly the existing images.

    Layout of the folder:

        {Train,Test}/{Image,GT_Object,GT_Instance}/COD10K-CAM-*.{jpg,png}     the release
        {train,test}.json                                                     written
        {train,test}_converted/NAME.json                                      written, and removed after the json

    Args:
        folder: holds Train and Test.
        workers: number of processes.

    Returns:
        split -> numbers of images and instances.

    Raises:
        DataError: a split has no images, the name of an image has no class, or a mask is missing, unreadable, or of
            another size.
    """
    return {split: _prepare_split(folder, split, workers) for split in _IMAGES}


def _prepare_split(folder: Path, split: str, workers: int) -> str:
    target, kept = folder / f"{split}.json", folder / f"{split}_converted"
    release = folder / split.title()
    names = sorted(path.stem for path in (release / "Image").glob("COD10K-CAM-*.jpg"))
    if not names:
        raise DataError(
            f"{release / 'Image'}: no COD10K-CAM-*.jpg; unpack COD10K-v3.zip so that {folder} holds Train and Test"
        )
    check_count(f"{release / 'Image'}, images with camouflage", len(names), _IMAGES[split])
    if lists_images(target, names):
        return "done before"
    scenes = convert_and_keep(names, partial(_read_image, release), kept, workers=workers, title=split)
    annotations = [{**a, "image_id": i} for i, scene in enumerate(scenes, start=1) for a in scene["annotations"]]
    content = {
        "images": [{"id": i, **scene["image"]} for i, scene in enumerate(scenes, start=1)],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(_CLASSES, start=1)],
    }
    write_json(target, content)
    shutil.rmtree(kept, ignore_errors=True)
    return f"{len(scenes)} images, {len(annotations)} instances"


def _read_image(release: Path, name: str) -> dict[str, Any]:
    """Return COCO's entries of an image and its instances; the image's name gives their class."""
    path = release / "Image" / f"{name}.jpg"
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match[1]) <= len(_CLASSES):
        raise DataError(f"{path}: not a name of COD10K, which has a class number from 1 to 69; restore the name")
    height, width = read_image_size(str(path))
    ids = _instance_ids(release, name)
    if ids.shape != (height, width):
        raise DataError(f"{path}: is {height} x {width} pixels (height x width), but its masks are {ids.shape}")
    segments = describe_segments(ids, with_masks=True).values()
    return {
        "image": {"file_name": path.name, "height": height, "width": width},
        "annotations": [{**segment, "category_id": int(match[1]), "iscrowd": 0} for segment in segments],
    }


def _instance_ids(release: Path, name: str) -> np.ndarray:
    """Return (H, W) instance ids, 0 for background: one per colour of the instance mask, or 1 if there is no mask."""
    inside = np.asarray(read_picture(release / "GT_Object" / f"{name}.png").convert("L")) > _FOREGROUND
    colors = release / "GT_Instance" / f"{name}.png"
    if not colors.exists() or not inside.any():
        return inside.astype(np.int32)
    painted = np.asarray(read_picture(colors).convert("RGB"), np.int32) @ [1 << 16, 1 << 8, 1]
    if painted.shape != inside.shape:
        raise DataError(
            f"{colors}: is {painted.shape} pixels (height x width), but the mask in GT_Object is {inside.shape}; "
            "unpack COD10K-v3.zip again"
        )
    found, ids, areas = np.unique(np.where(inside, painted, 0), return_inverse=True, return_counts=True)
    kept = (found != 0) & (areas >= _MIN_SHARE * inside.sum())
    return np.where(kept, np.cumsum(kept), 0)[ids].reshape(inside.shape).astype(np.int32)
