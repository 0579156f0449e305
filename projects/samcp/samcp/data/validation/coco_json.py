"""Validation of COCO jsons, read directly, since loaders stop at the first error or skip invalid entries."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proposal_cache.errors import reason
from samcp.vocabulary import word_key

_IDS = ("id", "image_id", "category_id")  # required keys of an instance
_MEASURES = ("area", "bbox", "iscrowd")  # its other required keys, besides the mask
_IMAGE = ("id", "file_name", "height", "width")
_SHOWN = 5

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class _Json:
    """Lists of a json, without entries that are not objects; these are reported in `problems`."""

    path: str
    images: Sequence[Entry]
    annotations: Sequence[Entry]
    categories: Sequence[Entry]
    problems: list[str]


def check_jsons(panoptic: str | None, instances: str | None) -> list[str]:
    """Check a dataset's panoptic and instance jsons, each alone and against each other.

    Args:
        panoptic, instances: paths. A json that is None or missing is skipped: the loader reports those it needs.

    Returns:
        The problems found.
    """
    found = [_read(path) if path and os.path.isfile(path) else None for path in (panoptic, instances)]
    problems: list[str] = []
    for content, check in zip(found, (_check_panoptic, _check_instances), strict=True):
        if content is not None:
            problems += content.problems + _check_images(content) + check(content)
    if found[0] is not None and found[1] is not None:
        problems += compare_things(found[0].path, found[0].categories, found[1].path, found[1].categories)
        problems += _compare_images(found[0], found[1])
    return problems


def compare_things(
    panoptic: str, panoptic_categories: Sequence[Entry], instances: str, categories: Sequence[Entry]
) -> list[str]:
    """Compare the categories of an instance json with the things of a panoptic json.

    Args:
        panoptic, instances: paths of the jsons.
        panoptic_categories, categories: their categories.

    Returns:
        The problems found; none if a panoptic category has no isthing, so that the things are unknown.
    """
    if not all("isthing" in category for category in panoptic_categories):
        return []
    things = _names([category for category in panoptic_categories if category["isthing"]])
    listed = _names(categories)
    way_out = "both need the same things, with the same ids"
    problems = [
        f"{instances}: has no category {i!r} {name!r}, a thing of {panoptic}; {way_out}"
        for i, name in things.items()
        if i not in listed
    ]
    for i, name in listed.items():
        if i not in things:
            problems.append(f"{instances}: category {i!r} {name!r} is not a thing of {panoptic}; {way_out}")
        elif word_key(name) != word_key(things[i]):
            problems.append(f"{instances}: category {i!r} is {name!r}, but {things[i]!r} in {panoptic}; {way_out}")
    return problems


def shown(values: Sequence[Any]) -> str:
    """Format the first values for a message."""
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _read(path: str) -> _Json:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        return _Json(path, [], [], [], [f"{path}: cannot be read as json ({reason(error)})"])
    problems: list[str] = []
    images, annotations, categories = (
        _objects(path, content, key, problems) for key in ("images", "annotations", "categories")
    )
    return _Json(path, images, annotations, categories, problems)


def _objects(path: str, content: Any, key: str, problems: list[str]) -> Sequence[Entry]:
    """Return the objects of one of the lists; report other entries in ``problems``."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        problems.append(f"{path}: has no {key}, which is a list of objects")
        return []
    objects = [entry for entry in entries if isinstance(entry, dict)]
    if len(objects) < len(entries):
        problems.append(f"{path}: {len(entries) - len(objects)} of its {key} are not objects")
    return objects


def _check_images(content: _Json) -> list[str]:
    problems = []
    for i, image in enumerate(content.images, start=1):
        missing = [key for key in _IMAGE if _value(image, key) is None]
        if missing:
            name = image.get("file_name") or f"number {i}"
            problems.append(f"{content.path}: image {name} has no {' and no '.join(missing)}")
    return problems + [f"{content.path}: {n} images have the id {i!r}" for i, n in _counts(content.images) if n > 1]


def _check_instances(content: _Json) -> list[str]:
    """Report annotations that Detectron2 would skip, and missing keys that COCO's evaluation needs."""
    images, categories = _values(content.images), _values(content.categories)
    problems = []
    for i, annotation in enumerate(content.annotations, start=1):
        number = _value(annotation, "id")
        where = f"{content.path}: annotation " + (f"number {i}" if number is None else f"{number}")
        missing = [key for key in _IDS if _value(annotation, key) is None]
        missing += [key for key in _MEASURES if annotation.get(key) in (None, [])]
        if missing:
            problems.append(f"{where} has no {' and no '.join(missing)}, which COCO's evaluation needs")
        problems += _unknown(where, annotation, "image_id", images, "images")
        problems += _unknown(where, annotation, "category_id", categories, "categories")
        fault = _mask_fault(annotation.get("segmentation"))
        if fault:
            problems.append(f"{where} has {fault}")
    return problems + [
        f"{content.path}: {n} annotations have the id {i!r}" for i, n in _counts(content.annotations) if n > 1
    ]


def _mask_fault(segmentation: Any) -> str:
    """Return the error of a "segmentation" that can be found without the image's size; "" if there is none."""
    if not segmentation:
        return "no segmentation"
    if isinstance(segmentation, dict):
        return "" if {"size", "counts"} <= segmentation.keys() else "an RLE without size or without counts"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return "a segmentation that is not a list of polygons; write [[x, y, x, y, ...], ...], or an RLE"
    if not all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
        return "a polygon of less than three points, or with an odd number of coordinates"
    return ""


def _check_panoptic(content: _Json) -> list[str]:
    images, categories = _values(content.images), _values(content.categories)
    problems = [
        f"{content.path}: category {category.get('id')} has no isthing, 1 or 0"
        for category in content.categories
        if "isthing" not in category
    ]
    for i, annotation in enumerate(content.annotations, start=1):
        where = f"{content.path}: annotation {annotation.get('file_name') or f'number {i}'}"
        missing = [key for key in ("image_id", "file_name") if _value(annotation, key) is None]
        segments = annotation.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            missing, segments = [*missing, "segments_info, a list of objects"], []
        if missing:
            problems.append(f"{where} has no {' and no '.join(missing)}")
        problems += _unknown(where, annotation, "image_id", images, "images")
        for j, segment in enumerate(segments, start=1):
            number = _value(segment, "id")
            which = f"{where}, segment " + (f"number {j}" if number is None else f"{number}")
            missing = [key for key in ("id", "category_id") if _value(segment, key) is None]
            if missing:
                problems.append(f"{which} has no {' and no '.join(missing)}")
            problems += _unknown(which, segment, "category_id", categories, "categories")
    annotated = {_value(annotation, "image_id") for annotation in content.annotations}
    return problems + [
        f"{content.path}: image {image.get('file_name')} has no annotation, so it would be skipped; add one with "
        "the PNG of its segments, or remove the image"
        for image in content.images
        if _value(image, "id") not in annotated
    ]


def _compare_images(panoptic: _Json, instances: _Json) -> list[str]:
    """Report images that only one of two jsons has, or that have different names."""
    ours, theirs = (
        {i: image.get("file_name") for image in content.images if (i := _value(image, "id")) is not None}
        for content in (panoptic, instances)
    )
    renamed = [
        f"{instances.path}: image {i!r} is {theirs[i]}, but {name} in {panoptic.path}"
        for i, name in ours.items()
        if theirs.get(i, name) != name
    ]
    return _lacking(instances, panoptic) + _lacking(panoptic, instances) + renamed


def _lacking(content: _Json, other: _Json) -> list[str]:
    """Report the images of another json that a json lacks."""
    known = _values(content.images)
    missing = [repr(i) for i, _ in _counts(other.images) if i not in known]
    if not missing:
        return []
    return [
        f"{content.path}: lacks {len(missing)} of the image ids of {other.path}: {shown(missing)}; both need the same "
        "images, with the same ids"
    ]


def _unknown(where: str, entry: Entry, key: str, known: set[Any], what: str) -> list[str]:
    """Report a reference of an entry to an id that the json does not list."""
    value = _value(entry, key)
    return [] if value is None or value in known else [f"{where} has the {key} {value!r}, which is not in its {what}"]


def _names(categories: Sequence[Entry]) -> dict[Any, str]:
    """Return id -> name."""
    return {i: str(category.get("name")) for category in categories if (i := _value(category, "id")) is not None}


def _counts(entries: Sequence[Entry]) -> list[tuple[Any, int]]:
    """Count each id."""
    return list(Counter(i for entry in entries if (i := _value(entry, "id")) is not None).items())


def _values(entries: Sequence[Entry]) -> set[Any]:
    """Return all ids."""
    return {i for i, _ in _counts(entries)}


def _value(entry: Entry, key: str) -> Any:
    """Return a number or text of an entry, None if missing or of another type."""
    value = entry.get(key)
    return value if isinstance(value, (int, float, str)) else None
