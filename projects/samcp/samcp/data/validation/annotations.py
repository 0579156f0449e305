"""Validation of COCO annotations before pycocotools and panopticapi see them.

On invalid masks pycocotools may hang or crash; on missing keys both fail only after the last image.
"""

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from proposal_cache import rle
from proposal_cache.errors import MaskError, abbreviate
from samcp.errors import DataError

_MEASURES = ("area", "bbox", "iscrowd")  # keys that COCO's evaluation needs besides ids and mask
_NUMBERS = (int, float)
_LARGEST = 1e15  # of an area or coordinate: integers of a json may exceed every float

Entry = Mapping[str, Any]


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a COCO json.

    Raises:
        DataError: it is unreadable, or not an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise DataError.missing(str(path), "json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a COCO json, which is an object with images, annotations and categories")
    return content


def require_instances(path: str | Path, *, measures: bool = False) -> None:
    """Raise DataError, naming the first invalid entry, unless a COCO instance json is safe to load.

    Unusual values that do no harm, such as boxes without extent, are left to ``check_dataset``.

    Args:
        path: of the json.
        measures: whether area, bbox and iscrowd must be present, which COCO's evaluation needs.
    """
    content, images, categories = _read_lists(path)
    for i, annotation in enumerate(content["annotations"], start=1):
        missing = [] if is_id(annotation.get("id")) else ["has no id"]
        missing += missing_measures(annotation) if measures else []
        _raise_first(path, annotation_name(annotation, i), missing, annotation_faults(annotation, images, categories))


def require_panoptic(path: str | Path) -> None:
    """Raise DataError, naming the first invalid entry, unless a COCO panoptic json can be evaluated."""
    content, images, categories = _read_lists(path)
    for category in content["categories"]:
        if category.get("isthing") not in (0, 1):
            raise DataError(f"{path}: category {category.get('id')} has no isthing, 1 or 0")
    for i, annotation in enumerate(content["annotations"], start=1):
        faults = panoptic_faults(annotation, images, categories)
        _raise_first(path, f"annotation {annotation.get('file_name') or f'number {i}'}", faults)


def missing_measures(annotation: Entry) -> list[str]:
    """Return a fault for each key that COCO's evaluation needs and an instance lacks."""
    return [f"has no {key}, which COCO's evaluation needs" for key in _MEASURES if annotation.get(key) in (None, [])]


def _raise_first(path: str | Path, where: str, *faults: Iterable[str]) -> None:
    for fault in chain(*faults):
        raise DataError(f"{path}: {where} {fault}; scripts/check_dataset.py lists all faults")


def _read_lists(path: str | Path) -> tuple[dict[str, Any], dict[Any, Entry], set[Any]]:
    """Return the content of a COCO json, its images by id, and the ids of its categories."""
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: has no {key}, which is a list of objects")
    for image in content["images"]:
        if not has_size(image) or not is_id(image.get("id")) or not isinstance(image.get("file_name"), str):
            raise DataError(f"{path}: id, file_name, height or width is missing or invalid in {abbreviate(image)}")
    for category in content["categories"]:
        if not is_id(category.get("id")):
            raise DataError(f"{path}: the category {abbreviate(category)} has no id")
    images = {image["id"]: image for image in content["images"]}
    return content, images, {category["id"] for category in content["categories"]}


def annotation_name(annotation: Entry, number: int) -> str:
    """Return the name of an annotation in messages: its id, or its number in the json if it has none."""
    return f"annotation {annotation['id']}" if is_id(annotation.get("id")) else f"annotation number {number}"


def annotation_faults(annotation: Entry, images: Mapping[Any, Entry], categories: set[Any]) -> Iterator[str]:
    """Yield each fault of an instance that loading or evaluation would fail on.

    Args:
        annotation: of the json.
        images: id -> image.
        categories: all ids.
    """
    yield from _reference_faults(annotation, "image_id", images, "images")
    yield from _reference_faults(annotation, "category_id", categories, "categories")
    image = images.get(annotation["image_id"]) if is_id(annotation.get("image_id")) else None
    if image is not None and has_size(image):
        yield from _mask_faults(annotation.get("segmentation"), image["height"], image["width"])
    yield from _value_faults(annotation)


def panoptic_faults(annotation: Entry, images: Mapping[Any, Entry], categories: set[Any]) -> Iterator[str]:
    """Yield each fault of a panoptic annotation, as `annotation_faults` of an instance."""
    yield from _reference_faults(annotation, "image_id", images, "images")
    if not isinstance(annotation.get("file_name"), str):
        yield "has no file_name"
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        yield "has no segments_info, a list of objects"
        return
    for j, segment in enumerate(segments, start=1):
        number = segment.get("id")
        known = type(number) is int
        faults = [] if known else ["has no id, which is an integer"]
        faults += _reference_faults(segment, "category_id", categories, "categories")
        if segment.get("iscrowd") not in (0, 1):
            faults.append("has no iscrowd, 0 or 1")
        yield from (f"has a segment, {number if known else f'number {j}'}, that {fault}" for fault in faults)


def valid_mask(segmentation: Any, height: int, width: int) -> bytes:
    """Return the compressed counts of a segmentation without faults; without pixels if no polygon has three points."""
    polygons = drawable(segmentation)
    return rle.from_json(polygons, height, width) if polygons else rle.encode(np.zeros((1, height, width), bool))[0]


def drawable(segmentation: Any) -> Any:
    """Return a segmentation without polygons of less than three points, which cover no pixel; COCO has some."""
    if not isinstance(segmentation, list):
        return segmentation
    return [p for p in segmentation if not isinstance(p, list) or len(p) >= 6 or len(p) % 2]


def has_size(image: Entry) -> bool:
    """Return whether height and width are positive integers, and not too large for a mask."""
    height, width = image.get("height"), image.get("width")
    return type(height) is int and type(width) is int and min(height, width) > 0 and height * width <= rle.MAX_PIXELS


def is_id(value: Any) -> bool:
    """Return whether a value can be an id: a number or a text."""
    return isinstance(value, int | float | str)


def is_box(value: Any) -> bool:
    """Return whether a value is four finite numbers."""
    return isinstance(value, Sequence) and len(value) == 4 and all(map(_is_finite, value))


def _reference_faults(entry: Entry, key: str, known: Container[Any], what: str) -> Iterator[str]:
    value = entry.get(key)
    if not is_id(value):
        yield f"has no {key}"
    elif value not in known:
        yield f"has the {key} {value!r}, which is not in its {what}"


def _mask_faults(segmentation: Any, height: int, width: int) -> Iterator[str]:
    if not segmentation:
        yield "has no segmentation"
    elif polygons := drawable(segmentation):
        try:
            rle.check_json(polygons, height, width)
        except MaskError as error:
            yield f"has an invalid segmentation: {error}"


def _value_faults(annotation: Entry) -> Iterator[str]:
    if "bbox" in annotation and not is_box(annotation["bbox"]):
        yield f"has the bbox {abbreviate(annotation['bbox'])}, which is not four numbers (x, y, width, height)"
    if "area" in annotation and not (_is_finite(annotation["area"]) and annotation["area"] >= 0):
        yield f"has the area {abbreviate(annotation['area'])}, which is not a number of pixels"
    if annotation.get("ignore", 0) != 0:
        yield f"has ignore {abbreviate(annotation['ignore'])}, which Detectron2 does not support; use iscrowd"
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield f"has iscrowd {abbreviate(annotation['iscrowd'])}, which is neither 0 nor 1"


def _is_finite(value: Any) -> bool:
    return type(value) in _NUMBERS and -_LARGEST <= value <= _LARGEST
