"""What is wrong with a dataset, found before a training finds it."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageOps

from proposal_cache import CacheError, PatchCache, image_key
from proposal_cache.sources import check_depth

from .errors import DataError
from .ground_truth import GroundTruth, read_ground_truth, read_panoptic_ids
from .patch_caches import image_root, read_patches
from .preparation.files import convert_all
from .vocabulary import Vocabulary

_SAME_OBJECT = 0.9  # IoU from which on two instances of one class are taken for one that was drawn twice
_NEEDED = ("area", "bbox", "iscrowd")  # of an instance, besides its mask
_OUTSIDE = 1.0  # pixels by which a box may leave its image


@dataclass(frozen=True)
class ClassCount:
    """How often a class is there: segments, images that have one, pixels."""

    name: str
    segments: int
    images: int
    pixels: int


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        images: how many the dataset has.
        problems: sentences, each with the file and what is wrong with it.
        remarks: what may be meant so: classes that never occur, images without any segment.
        classes: one a class.
    """

    images: int
    problems: Sequence[str]
    remarks: Sequence[str]
    classes: Sequence[ClassCount]


@dataclass
class _Finding:
    """Of one image: problems, and the class and area of each segment."""

    problems: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)


def check_dataset(name: str, *, cache: PatchCache | None = None, workers: int = 1) -> Report:
    """Read everything that a registered dataset names.

    Args:
        cache: its patches, which are then checked too.
        workers: processes.

    Raises:
        DataError: there is no such dataset, or its list of images cannot be read.
    """
    records, vocabulary = _records(name), Vocabulary.of_dataset(name)
    ignore_label = MetadataCatalog.get(name).get("ignore_label", 255)
    look = partial(_check_image, num_classes=len(vocabulary.names), ignore_label=ignore_label)
    findings = convert_all(records, look, workers=workers, title=name)
    problems = (
        _check_keys(name, records)
        + _check_json(name)
        + _check_categories(name)
        + [problem for finding in findings for problem in finding.problems]
    )
    if cache is not None:
        problems += _check_patches(name, records, cache)
    empty = sum(not finding.classes and not finding.problems for finding in findings)
    classes = _count(findings, vocabulary)
    remarks = [f"{one.name}: never occurs" for one in classes if not one.segments]
    if empty:
        remarks.append(f"{empty} of {len(records)} images have no segment of any class")
    return Report(len(records), problems, remarks, classes)


def _records(name: str) -> list[dict[str, Any]]:
    if name not in DatasetCatalog:
        raise DataError(f"there is no dataset {name!r}; registered are: {', '.join(sorted(DatasetCatalog))}")
    try:
        records: list[dict[str, Any]] = DatasetCatalog.get(name)
    except (OSError, AssertionError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"dataset {name!r} cannot be read: {error!r}") from error
    if not records:
        raise DataError(f"dataset {name!r} has no images")
    return records


def _check_keys(name: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images that patches or results could not tell apart."""
    try:
        root = image_root(name)
        keys = Counter(image_key(record["file_name"], root) for record in records)
    except CacheError as error:
        return [str(error)]
    ids = Counter(record["image_id"] for record in records if "image_id" in record)  # semantic ones need none
    return [f"{n} images have the key {key!r} (the path without its suffix)" for key, n in keys.items() if n > 1] + [
        f"{n} images have the id {image_id!r}" for image_id, n in ids.items() if n > 1
    ]


def _check_json(name: str) -> list[str]:
    """What Detectron2 leaves out of an instance json without a word, or with a word but not which."""
    listed = MetadataCatalog.get(name).get("json_file")
    if not listed or not os.path.isfile(listed):
        return []
    with open(listed, "rb") as file:
        content = json.load(file)
    images = {image["id"]: image["file_name"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    problems = []
    for annotation in content["annotations"]:
        where = f"{listed}: annotation {annotation['id']}"
        polygons = annotation.get("segmentation")
        if annotation["image_id"] not in images:
            problems.append(f"{where} is of image {annotation['image_id']!r}, which is not in its images")
        if annotation["category_id"] not in categories:
            problems.append(f"{where} has the category {annotation['category_id']}, which is not in its categories")
        missing = [key for key in _NEEDED if key not in annotation]
        if missing:
            problems.append(f"{where} has no {' and no '.join(missing)}, which COCO's evaluation needs")
        if not polygons:
            problems.append(f"{where} has no segmentation")
        elif isinstance(polygons, list) and not all(len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
            problems.append(f"{where} has a polygon of less than three points, or of half a point")
    ids = Counter(annotation["id"] for annotation in content["annotations"])
    return problems + [f"{listed}: {n} annotations have the id {i}" for i, n in ids.items() if n > 1]


def _check_categories(name: str) -> list[str]:
    """What COCO's panoptic evaluation needs of categories."""
    listed = MetadataCatalog.get(name).get("panoptic_json")
    if not listed or not os.path.isfile(listed):
        return []
    with open(listed, "rb") as file:
        categories = json.load(file).get("categories", [])
    return [
        f"{listed}: category {category.get('id')} has no isthing, 1 or 0"
        for category in categories
        if "isthing" not in category
    ]


def _check_image(record: Mapping[str, Any], *, num_classes: int, ignore_label: int) -> _Finding:
    finding = _Finding()
    size = _image_size(record, finding.problems)
    if size is None:
        return finding
    try:
        truth = read_ground_truth(record, size, num_classes=num_classes, ignore_label=ignore_label)
        if "pan_seg_file_name" in record:
            finding.problems += _check_segments(record)
    except (DataError, CacheError) as error:
        finding.problems.append(str(error))
        return finding
    except Exception as error:  # pycocotools fails in many ways on polygons that are none
        finding.problems.append(f"{record['file_name']}: its annotations cannot be read ({error!r})")
        return finding
    finding.problems += _check_boxes(record, size)
    finding.problems += _check_masks(record, truth)
    finding.classes, finding.areas = truth.classes.tolist(), truth.masks.areas.tolist()
    return finding


def _image_size(record: Mapping[str, Any], problems: list[str]) -> tuple[int, int] | None:
    """(height, width) of the file, or None with a problem where it cannot be read."""
    path = record["file_name"]
    try:
        with Image.open(path) as image:
            check_depth(image)
            width, height = ImageOps.exif_transpose(image).size
    except FileNotFoundError:
        problems.append(f"{path}: the image is not there")
        return None
    except (OSError, ValueError, SyntaxError) as error:
        problems.append(f"{path}: the image cannot be read ({error})")
        return None
    listed = record.get("height", height), record.get("width", width)
    if listed != (height, width):
        problems.append(f"{path}: is {height} x {width} pixels (height x width), but is listed as {listed}")
        return None
    return height, width


def _check_segments(record: Mapping[str, Any]) -> list[str]:
    """The PNG and the json of a panoptic annotation."""
    path, infos = record["pan_seg_file_name"], record["segments_info"]
    ids, areas = np.unique(read_panoptic_ids(path), return_counts=True)
    painted = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    painted.pop(0, None)
    listed = Counter(info["id"] for info in infos)
    problems = [f"{path}: the json lists segment {i} {n} times" for i, n in listed.items() if n > 1]
    problems += [f"{path}: segment {i} of the json has no pixel" for i in listed if i not in painted]
    problems += [
        f"{path}: {n} pixels have the id {i}, which the json does not list"
        for i, n in painted.items()
        if i not in listed
    ]
    problems += [
        f"{path}: segment {info['id']} has no {key} in the json"
        for info in infos
        for key in ("area", "iscrowd")
        if key not in info
    ]
    problems += [
        f"{path}: segment {info['id']} has {painted[info['id']]} pixels, but the json says {info['area']}"
        for info in infos
        if "area" in info and info["id"] in painted and info["area"] != painted[info["id"]]
    ]
    return problems


def _check_boxes(record: Mapping[str, Any], size: tuple[int, int]) -> list[str]:
    height, width = size
    problems = []
    for annotation in record.get("annotations", []):
        if len(annotation.get("bbox") or ()) != 4:
            problems.append(f"{record['file_name']}: an annotation has no bbox of four numbers (x, y, width, height)")
            continue
        x, y, w, h = annotation["bbox"]
        if w <= 0 or h <= 0 or min(x, y) < -_OUTSIDE or x + w > width + _OUTSIDE or y + h > height + _OUTSIDE:
            problems.append(
                f"{record['file_name']}: the box {[round(v, 1) for v in (x, y, w, h)]} (x, y, width, height) has no "
                f"area or does not lie in the image, which is {width} x {height}"
            )
    return problems


def _check_masks(record: Mapping[str, Any], truth: GroundTruth) -> list[str]:
    """Instances without a pixel, and those that are there twice."""
    path = record["file_name"]
    problems = [f"{path}: a segment of class {c} has no pixel" for c in truth.classes[truth.masks.areas == 0].tolist()]
    if "annotations" not in record:
        return problems  # what comes from a map cannot overlap
    things, classes = truth.things()
    iou = np.triu(things.iou(things), k=1)
    for i, j in np.argwhere(iou > _SAME_OBJECT).tolist():
        if classes[i] == classes[j]:
            problems.append(
                f"{path}: two instances of class {classes[i]} are the same to {iou[i, j]:.0%}, around "
                f"{things.boxes[i].astype(int).tolist()} (x0, y0, x1, y1)"
            )
    return problems


def _check_patches(name: str, records: Sequence[Mapping[str, Any]], cache: PatchCache) -> list[str]:
    root, problems = image_root(name), []
    for record in records:
        key = image_key(record["file_name"], root)
        try:
            with Image.open(record["file_name"]) as image:
                size = ImageOps.exif_transpose(image).size[::-1]
            read_patches(cache, {**record, "key": key, "patches_path": str(cache.path), "dataset_name": name}, size)
        except CacheError as error:
            problems.append(str(error))
        except OSError:
            continue  # said before
    return problems


def _count(findings: Sequence[_Finding], vocabulary: Vocabulary) -> list[ClassCount]:
    segments, images, pixels = (np.zeros(len(vocabulary.names), np.int64) for _ in range(3))
    for finding in findings:
        np.add.at(segments, finding.classes, 1)
        np.add.at(pixels, finding.classes, finding.areas)
        images[np.unique(np.array(finding.classes, np.int64))] += 1
    return [
        ClassCount(*row)
        for row in zip(vocabulary.names, segments.tolist(), images.tolist(), pixels.tolist(), strict=True)
    ]
