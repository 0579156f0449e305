"""Validation of COCO jsons, read directly, since loaders stop at the first error or skip invalid entries."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from proposal_cache import Patches, rle
from samcp.data.validation.annotations import (
    Entry,
    annotation_faults,
    annotation_name,
    drawable,
    has_size,
    is_id,
    missing_measures,
    panoptic_faults,
    read_json,
)
from samcp.errors import DataError
from samcp.vocabulary import word_key

_IMAGE = ("id", "file_name", "height", "width")
_SHOWN = 5
_OUTSIDE = 1.0  # pixels by which a box may exceed its image
# Deviations of box and area from the mask that are reported; those of COCO's polygons are within half of them.
_BOX_DEVIATION = 10.0  # pixels, or a tenth of the longer side
_AREA_DEVIATION = 20.0  # pixels, besides a factor of 2


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
    fix = "both need the same things, with the same ids"
    problems = [
        f"{instances}: has no category {i!r} {name!r}, a thing of {panoptic}; {fix}"
        for i, name in things.items()
        if i not in listed
    ]
    for i, name in listed.items():
        if i not in things:
            problems.append(f"{instances}: category {i!r} {name!r} is not a thing of {panoptic}; {fix}")
        elif word_key(name) != word_key(things[i]):
            problems.append(f"{instances}: category {i!r} is {name!r}, but {things[i]!r} in {panoptic}; {fix}")
    return problems


def shown(values: Sequence[Any]) -> str:
    """Format the first values for a message."""
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _read(path: str) -> _Json:
    try:
        content = read_json(path)
    except DataError as error:
        return _Json(path, [], [], [], [str(error)])
    problems: list[str] = []
    images, annotations, categories = (
        _objects(path, content, key, problems) for key in ("images", "annotations", "categories")
    )
    return _Json(path, images, annotations, categories, problems)


def _objects(path: str, content: Entry, key: str, problems: list[str]) -> Sequence[Entry]:
    """Return the objects of one of the lists; report other entries in ``problems``."""
    entries = content.get(key)
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
        elif not has_size(image):
            size = f"{image['height']!r} x {image['width']!r}"
            problems.append(f"{content.path}: image {image['file_name']} has the invalid size {size} (height x width)")
    return problems + [f"{content.path}: {n} images have the id {i!r}" for i, n in _counts(content.images) if n > 1]


def _check_instances(content: _Json) -> list[str]:
    """Report annotations that fail in training or evaluation or that Detectron2 skips, and measures unlike the mask."""
    images, categories = _by_id(content.images), _values(content.categories)
    problems = []
    sound: dict[Any, list[tuple[str, Entry]]] = defaultdict(list)  # per image id
    for i, annotation in enumerate(content.annotations, start=1):
        where = f"{content.path}: {annotation_name(annotation, i)}"
        faults = [] if is_id(annotation.get("id")) else ["has no id, which COCO's evaluation needs"]
        faults += missing_measures(annotation)
        faults += annotation_faults({k: v for k, v in annotation.items() if v not in (None, [])}, images, categories)
        segmentation = annotation.get("segmentation")
        if not faults and drawable(segmentation) != segmentation:
            faults.append("has a polygon of less than three points, which Detectron2 skips")
        problems += [f"{where} {fault}" for fault in faults]
        if not faults:
            sound[annotation["image_id"]].append((where, annotation))
    for image_id, annotations in sound.items():
        if has_size(images[image_id]):
            problems += _check_measures(images[image_id], annotations)
    return problems + [
        f"{content.path}: {n} annotations have the id {i!r}" for i, n in _counts(content.annotations) if n > 1
    ]


def _check_measures(image: Entry, annotations: Sequence[tuple[str, Entry]]) -> Iterator[str]:
    """Compare box and area of the valid annotations of one image, with their names, with its size and their masks."""
    height, width = image["height"], image["width"]
    counts = [rle.from_json(annotation["segmentation"], height, width) for _, annotation in annotations]
    masks = Patches.from_rles(height, width, counts)
    for (where, annotation), mask, area in zip(annotations, masks.boxes.tolist(), masks.areas.tolist(), strict=True):
        x, y, w, h = annotation["bbox"]
        box = f"the box {[round(v, 1) for v in (x, y, w, h)]} (x, y, width, height)"
        if w <= 0 or h <= 0 or min(x, y) < -_OUTSIDE or x + w > width + _OUTSIDE or y + h > height + _OUTSIDE:
            yield (
                f"{where}, in {image.get('file_name')}: {box} has no area or exceeds the image, which is "
                f"{width} x {height}"
            )
        elif _deviation((x, y, x + w, y + h), mask) > max(_BOX_DEVIATION, max(w, h) / 10):
            yield (
                f"{where}, in {image.get('file_name')}: {box} is not that of its mask, "
                f"{[mask[0], mask[1], mask[2] - mask[0], mask[3] - mask[1]]}"
            )
        if max(area, annotation["area"]) > 2 * min(area, annotation["area"]) + _AREA_DEVIATION:
            yield (
                f"{where}, in {image.get('file_name')}: has area {annotation['area']}, but its mask has {area} pixels"
            )


def _deviation(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest distance between the sides of two boxes."""
    return max(abs(a - b) for a, b in zip(box, other, strict=True))


def _check_panoptic(content: _Json) -> list[str]:
    images, categories = _by_id(content.images), _values(content.categories)
    problems = [
        f"{content.path}: category {category.get('id')} has no isthing, 1 or 0"
        for category in content.categories
        if "isthing" not in category
    ]
    for i, annotation in enumerate(content.annotations, start=1):
        where = f"{content.path}: annotation {annotation.get('file_name') or f'number {i}'}"
        problems += [f"{where} {fault}" for fault in panoptic_faults(annotation, images, categories)]
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


def _by_id(images: Sequence[Entry]) -> dict[Any, Entry]:
    return {i: image for image in images if (i := _value(image, "id")) is not None}


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
    return value if is_id(value) else None
