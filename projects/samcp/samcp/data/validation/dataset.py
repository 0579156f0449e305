"""Validation of a registered dataset: images, annotations, jsons and patches."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from proposal_cache import CacheError, PatchCache, image_key
from samcp.data.build import load_dataset
from samcp.data.datasets.catalog import require_registered
from samcp.data.ground_truth import GroundTruth, read_ground_truth, read_panoptic_ids
from samcp.data.image_io import read_image, read_image_size
from samcp.data.parallel import parallel_map
from samcp.data.patch_caches import image_root, read_patches
from samcp.data.validation.coco_json import check_jsons, shown
from samcp.data.validation.likely_errors import (
    is_turned_in_place,
    label_remarks,
    turned_by_exif,
    turned_image_remarks,
    word_remarks,
)
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

_SAME_OBJECT = 0.9  # IoU above which two instances are reported as duplicates
_OVERLAPPING = 0.5  # share of an instance inside another of its class above which the pair is counted


@dataclass(frozen=True)
class ClassCount:
    """Frequency of a class: number of segments, of images with the class, and of pixels."""

    name: str
    segments: int
    images: int
    pixels: int


@dataclass(frozen=True)
class Report:
    """Result of a validation.

    Attributes:
        images: number of images checked: all, or 0 if an invalid json prevents it.
        problems: messages, each with the file and the error.
        remarks: messages about what may be intended: classes that never occur or have other words than their category,
            images without segments, label maps without an image, overlapping instances.
        classes: one entry per class.
    """

    images: int
    problems: Sequence[str]
    remarks: Sequence[str]
    classes: Sequence[ClassCount]


@dataclass
class _Finding:
    """Result for one image.

    Attributes:
        problems: messages.
        classes, areas: of each segment.
        overlaps: number of overlapping pairs of instances of one class.
        turned: path of the image if EXIF turns it but its size does not show that, else "".
    """

    problems: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    overlaps: int = 0
    turned: str = ""


def check_dataset(name: str, *, cache: PatchCache | None = None, workers: int = 1) -> Report:
    """Check all images and annotations of a registered dataset.

    Args:
        name: of the dataset.
        cache: its patch cache, to be checked too.
        workers: number of processes.

    Raises:
        DataError: the dataset is not registered, or its records cannot be loaded although its jsons are valid.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    in_jsons = check_jsons(metadata.get("panoptic_json"), metadata.get("json_file"))
    try:
        records = load_dataset(name)
    except DataError as error:
        if not in_jsons:
            raise
        return Report(0, [*in_jsons, f"no image or mask was checked; fix the problems above first ({error})"], [], [])
    vocabulary, ignore_label = Vocabulary.of_dataset(name), metadata.get("ignore_label", 255)
    look = partial(
        _check_image,
        num_classes=len(vocabulary.names),
        ignore_label=ignore_label,
        several_annotators=metadata.get("several_annotators", False),
    )
    findings = parallel_map(records, look, workers=workers, title=name)
    problems = in_jsons + _check_keys(name, records) + [problem for finding in findings for problem in finding.problems]
    if cache is not None:
        problems += _check_patches(name, records, cache)
    empty = sum(not finding.classes and not finding.problems for finding in findings)
    classes = _count(findings, vocabulary)
    unused = [one.name for one in classes if not one.segments]
    remarks = [f"{len(unused)} of {len(classes)} classes never occur: {', '.join(unused)}"] if unused else []
    if "sem_seg_file_name" in records[0]:
        remarks += label_remarks(vocabulary.names, [bool(one.segments) for one in classes])
    remarks += turned_image_remarks([finding.turned for finding in findings if finding.turned])
    remarks += word_remarks(name, vocabulary) + _unused_labels(name, records) + _overlaps(records, findings)
    if empty:
        remarks.append(f"{empty} of {len(records)} images have no segment of any class")
    return Report(len(records), problems, remarks, classes)


def _check_keys(name: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Report images with equal keys or ids."""
    files: dict[str, list[str]] = defaultdict(list)
    try:
        root = image_root(name)
        for record in records:
            files[image_key(record["file_name"], root)].append(record["file_name"])
    except CacheError as error:
        return [str(error)]
    ids = Counter(record["image_id"] for record in records if "image_id" in record)  # optional in semantic datasets
    return [
        f"{shown(paths)}: {len(paths)} images have the key {key!r} (the path without its suffix); rename all but one"
        for key, paths in files.items()
        if len(paths) > 1
    ] + [f"{n} images have the id {image_id!r}" for image_id, n in ids.items() if n > 1]


def _unused_labels(name: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Report label maps of a custom dataset without an image, which may belong to another split."""
    metadata = MetadataCatalog.get(name)
    if not metadata.get("described_in") or not metadata.get("sem_seg_root"):
        return []
    used = {record["sem_seg_file_name"] for record in records}
    unused = sorted(str(path) for path in Path(metadata.sem_seg_root).rglob("*.png") if str(path) not in used)
    return [f"{len(unused)} label maps have no image with the same name: {shown(unused)}"] if unused else []


def _overlaps(records: Sequence[Mapping[str, Any]], findings: Sequence[_Finding]) -> list[str]:
    """Report instances inside others of their class, which may be correct for crowded objects."""
    found = [
        (record["file_name"], finding.overlaps)
        for record, finding in zip(records, findings, strict=True)
        if finding.overlaps
    ]
    if not found:
        return []
    pairs = sum(count for _, count in found)
    return [
        f"{pairs} instances are more than {_OVERLAPPING:.0%} inside another of their class, in {len(found)} images: "
        + shown([path for path, _ in found])
    ]


def _check_image(
    record: Mapping[str, Any], *, num_classes: int, ignore_label: int, several_annotators: bool
) -> _Finding:
    finding = _Finding()
    size = _image_size(record, finding.problems)
    if size is None:
        return finding
    if is_turned_in_place(record["file_name"], size):
        finding.turned = record["file_name"]
    try:
        truth = read_ground_truth(record, size, num_classes=num_classes, ignore_label=ignore_label)
        if "pan_seg_file_name" in record:
            finding.problems += _check_segments(record)
    except (DataError, CacheError) as error:
        finding.problems.append(f"{error}{turned_by_exif(record, size)}")
        return finding
    except Exception as error:  # pycocotools raises various errors for invalid polygons
        finding.problems.append(f"{record['file_name']}: its annotations cannot be read ({error!r})")
        return finding
    finding.problems += _check_masks(record, truth)
    # Segments of a label map cannot overlap; those of several annotators are the same objects.
    if "annotations" in record and not several_annotators:
        problems, finding.overlaps = _check_overlaps(record["file_name"], truth)
        finding.problems += problems
    finding.classes, finding.areas = truth.classes.tolist(), truth.masks.areas.tolist()
    return finding


def _image_size(record: Mapping[str, Any], problems: list[str]) -> tuple[int, int] | None:
    """Return (height, width) of the file; if it is unreadable, add a problem and return None."""
    path = record["file_name"]
    try:
        height, width = read_image(path, "RGB").shape[:2]  # decoded, since a header may be intact
    except DataError as error:
        problems.append(str(error))
        return None
    listed = record.get("height", height), record.get("width", width)
    if listed != (height, width):
        problems.append(
            f"{path}: is {height} x {width} pixels (height x width), but the dataset lists {listed}"
            + turned_by_exif(record, (height, width))
        )
        return None
    return height, width


def _check_segments(record: Mapping[str, Any]) -> list[str]:
    """Compare the PNG of a panoptic annotation with its json."""
    path, infos = record["pan_seg_file_name"], record["segments_info"]
    ids, areas = np.unique(read_panoptic_ids(path), return_counts=True)
    painted = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    painted.pop(0, None)
    listed = Counter(info["id"] for info in infos)
    problems = [f"{path}: the json lists segment {i} {n} times" for i, n in listed.items() if n > 1]
    problems += [f"{path}: segment {i} of the json has no pixels" for i in listed if i not in painted]
    problems += [
        f"{path}: {n} pixels have the id {i}, which the json does not list"
        for i, n in painted.items()
        if i not in listed
    ]
    problems += [f"{path}: segment {info['id']} has no area in the json" for info in infos if "area" not in info]
    problems += [
        f"{path}: segment {info['id']} has {painted[info['id']]} pixels, but area {info['area']} in the json"
        for info in infos
        if "area" in info and info["id"] in painted and info["area"] != painted[info["id"]]
    ]
    return problems


def _check_masks(record: Mapping[str, Any], truth: GroundTruth) -> list[str]:
    """Report segments without pixels."""
    empty = truth.classes[truth.masks.areas == 0].tolist()
    return [f"{record['file_name']}: a segment of class {c} has no pixels" for c in empty]


def _check_overlaps(path: str, truth: GroundTruth) -> tuple[list[str], int]:
    """Report duplicate instances, and count pairs of one class that overlap by most of the smaller instance."""
    things, classes = truth.things()
    iou, inside = things.iou(things), things.iop(things)
    problems, overlaps = [], 0
    for i, j in np.argwhere(np.triu(iou, k=1) > 0).tolist():
        if iou[i, j] > _SAME_OBJECT:
            which = (
                f"two instances of class {classes[i]}"
                if classes[i] == classes[j]
                else f"an instance of class {classes[i]} and one of class {classes[j]}"
            )
            problems.append(
                f"{path}: {which} overlap with an IoU of {iou[i, j]:.0%}, at {things.boxes[i].astype(int).tolist()} "
                "(x0, y0, x1, y1)"
            )
        elif classes[i] == classes[j] and max(inside[i, j], inside[j, i]) > _OVERLAPPING:
            overlaps += 1
    return problems, overlaps


def _check_patches(name: str, records: Sequence[Mapping[str, Any]], cache: PatchCache) -> list[str]:
    root, problems = image_root(name), []
    for record in records:
        key = image_key(record["file_name"], root)
        try:
            size = read_image_size(record["file_name"])
            read_patches(cache, {**record, "key": key, "patches_path": str(cache.path), "dataset_name": name}, size)
        except CacheError as error:
            problems.append(str(error))
        except DataError:
            continue  # already reported by _check_image
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
