"""Conversion of Cityscapes: label maps of train ids, and panoptic annotations.

Writes the same files as createTrainIdLabelImgs and createPanopticImgs of cityscapesscripts, without that package.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from samcp.data.datasets.cityscapes.register import image_file
from samcp.data.datasets.conversion import check_count, describe_segments, need_images
from samcp.data.files import write_json, write_label_map, write_panoptic_ids
from samcp.data.ground_truth import read_label_map
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_IMAGES = {"train": 2975, "val": 500}  # in the release; the ground truth of test is not public
_CLASSES = {category["id"]: category for category in CITYSCAPES_CATEGORIES}
_UNKNOWN = 255
_INSTANCE = 1000  # id of an instance = _INSTANCE * class + number; smaller ids are classes
_INSTANCE_IDS = "_gtFine_instanceIds.png"


def prepare_cityscapes(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the missing files of the layout beside those of the release.

    Layout of the folder:

        leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png             the release
        gtFine/{train,val}/CITY/NAME_gtFine_{instance,label}Ids.png   the release
        gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png         written: class ids 0..18, 255: void
        gtFine/cityscapes_panoptic_{train,val}/, and .json            written: COCO's panoptic format

    Args:
        folder: holds leftImg8bit and gtFine.
        workers: number of processes.

    Returns:
        split -> number of images; splits without annotations are skipped.

    Raises:
        DataError: no split has annotations, or an annotation is missing, unreadable or without image.
    """
    done = {}
    for split, expected in _IMAGES.items():
        truth = folder / "gtFine" / split
        sources = sorted(truth.glob(f"*/*{_INSTANCE_IDS}"))
        if not sources:
            continue
        check_count(f"{truth}, annotations", len(sources), expected)
        _check_images(folder, split, sources)
        target = folder / "gtFine" / f"cityscapes_panoptic_{split}"
        scenes = parallel_map(sources, partial(_convert, target), workers=workers, title=split)
        content = {
            "images": [scene["image"] for scene in scenes],
            "annotations": [scene["annotation"] for scene in scenes],
            "categories": [{k: c[k] for k in ("id", "name", "isthing")} for c in CITYSCAPES_CATEGORIES],
        }
        write_json(target.with_suffix(".json"), content)
        done[split] = f"{len(scenes)} images"
    if not done:
        raise DataError(
            f"{folder}: no gtFine/{{train,val}}/CITY/*{_INSTANCE_IDS}; unpack gtFine_trainvaltest.zip and "
            "leftImg8bit_trainvaltest.zip so that this folder holds gtFine and leftImg8bit"
        )
    return done


def _check_images(folder: Path, split: str, annotations: list[Path]) -> None:
    """Raise DataError if an annotation has no image; log a warning if the number of images differs from the release."""
    need_images(
        [image_file(folder, split, _name(annotation)) for annotation in annotations],
        f"unpack leftImg8bit_trainvaltest.zip so that {folder} holds leftImg8bit beside gtFine",
    )
    images = folder / "leftImg8bit" / split
    check_count(f"{images}, images", len(list(images.glob("*/*_leftImg8bit.png"))), _IMAGES[split])


def _name(annotation: Path) -> str:
    return annotation.name.removesuffix(_INSTANCE_IDS)


def _convert(target: Path, source: Path) -> dict[str, Any]:
    """Write the label map and the panoptic PNG of an image; return its part of the json."""
    name = _name(source)
    _write_train_ids(source.with_name(f"{name}_gtFine_labelIds.png"))
    ids = _panoptic_ids(read_label_map(str(source)))
    path = target / f"{name}_gtFine_panoptic.png"
    if not path.exists():
        write_panoptic_ids(path, ids)
    height, width = ids.shape
    return {
        "image": {"id": name, "file_name": f"{name}_leftImg8bit.png", "height": height, "width": width},
        "annotation": {"image_id": name, "file_name": path.name, "segments_info": _segments(ids)},
    }


def _write_train_ids(source: Path) -> None:
    target = source.with_name(source.name.replace("labelIds", "labelTrainIds"))
    if target.exists():
        return
    train_ids = np.full(256, _UNKNOWN, np.uint8)
    train_ids[list(_CLASSES)] = [category["trainId"] for category in _CLASSES.values()]
    write_label_map(target, train_ids[read_label_map(str(source))])


def _panoptic_ids(ids: np.ndarray) -> np.ndarray:
    """Return the release's instance ids for evaluated classes, 0 elsewhere."""
    classes = np.where(ids < _INSTANCE, ids, ids // _INSTANCE)
    return np.where(np.isin(classes, list(_CLASSES)), ids, 0)


def _segments(ids: np.ndarray) -> list[dict[str, Any]]:
    segments = []
    for i, described in describe_segments(ids, with_masks=False).items():
        class_id = i if i < _INSTANCE else i // _INSTANCE
        # A thing with the id of its class is a group of instances that were not annotated one by one.
        crowd = i < _INSTANCE and _CLASSES[class_id]["isthing"]
        segments.append({"id": i, "category_id": class_id, "iscrowd": int(crowd), **described})
    return segments
