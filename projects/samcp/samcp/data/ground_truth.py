"""Ground truth of an image as RLE segments, read from panoptic PNGs, label PNGs or instance annotations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proposal_cache import Patches, rle
from proposal_cache.errors import MaskError, reason
from proposal_cache.generation.sources import open_image
from proposal_cache.interchange.coco import panoptic_ids
from proposal_cache.rle import encode_labels
from samcp.errors import DataError


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground-truth segments of one image, S in all.

    Attributes:
        masks: S masks at the image's own size.
        classes: (S,) int64 contiguous class ids, things and stuff in one numbering.
        is_thing, is_crowd: (S,) bool.
    """

    masks: Patches
    classes: np.ndarray
    is_thing: np.ndarray
    is_crowd: np.ndarray

    def things(self) -> tuple[Patches, np.ndarray]:
        """Return masks and classes of the thing instances, without crowds."""
        index = np.flatnonzero(self.is_thing & ~self.is_crowd)
        return self.masks.select(index), self.classes[index]


def read_ground_truth(
    record: Mapping[str, Any], size: tuple[int, int], *, num_classes: int, ignore_label: int
) -> GroundTruth:
    """Read the ground truth of a Detectron2 dataset record.

    Args:
        record: has "pan_seg_file_name" and "segments_info" (COCO's panoptic PNG), or "sem_seg_file_name" (a PNG of
            class ids), or "annotations" (instances as polygons or RLEs); a panoptic PNG takes precedence.
        size: (height, width) of the image.
        num_classes, ignore_label: valid values of a label PNG: 0..num_classes-1, and ignore_label for void pixels.

    Raises:
        DataError: the ground truth is unreadable, differs from the image in size, or the record has none of the forms.
    """
    if "pan_seg_file_name" in record:
        return _from_panoptic(record["pan_seg_file_name"], record["segments_info"], size)
    forms = [form for form in ("sem_seg_file_name", "annotations") if form in record]
    if forms == ["sem_seg_file_name"]:
        return _from_label_map(record["sem_seg_file_name"], size, num_classes, ignore_label)
    if forms == ["annotations"]:
        return _from_annotations(record["annotations"], size, record["file_name"])
    raise DataError(
        f"{record['file_name']}: the ground truth must be one of pan_seg_file_name, sem_seg_file_name and annotations, "
        f"but this record has {forms or 'none of them'}"
    )


def annotated_size(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return (height, width) from the annotations, since the image itself may be unreadable.

    Raises:
        DataError: the record has neither a size nor a PNG of labels.
    """
    if "height" in record:
        return record["height"], record["width"]
    path = record.get("pan_seg_file_name", record.get("sem_seg_file_name"))
    if path is None:
        raise DataError(
            f"{record['file_name']}: the dataset gives neither its height and width nor a PNG of labels; add one of "
            "them to its records"
        )
    image = read_picture(path)
    return image.height, image.width


def read_picture(path: str | Path) -> Image.Image:
    """Read an image file of labels or segments.

    Raises:
        DataError: it is missing, damaged, or too large.
    """
    try:
        with open_image(str(path)) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError.missing(str(path), "ground truth") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of them for damaged files
        raise DataError(f"{path}: the ground truth cannot be read ({reason(error)}); replace the file") from error


def read_panoptic_ids(path: str) -> np.ndarray:
    """Read a COCO panoptic PNG as (H, W) int32 segment ids, R + 256 G + 256² B.

    Raises:
        DataError: the file is missing, unreadable, or not RGB.
    """
    image = read_picture(path)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(f"{path}: a panoptic annotation must be an RGB PNG, this one has mode {image.mode}")
    return panoptic_ids(image)


def read_label_map(path: str) -> np.ndarray:
    """Read a PNG of class ids as (H, W) int32.

    Raises:
        DataError: the file is missing, unreadable, or has several channels.
    """
    labels = np.asarray(read_picture(path))
    if labels.ndim != 2:
        raise DataError(
            f"{path}: a label map must have one channel of class ids, but this one has {labels.shape[2]}; if its "
            "colours are the classes, convert it with a palette of them: see docs/datasets.md, Colours as labels"
        )
    return labels.astype(np.int32)


def check_labels(path: str, labels: Collection[int], num_classes: int, ignore_label: int) -> None:
    """Raise DataError if a label map has labels that are neither a class id nor ignore_label."""
    unknown = [label for label in labels if label != ignore_label and not 0 <= label < num_classes]
    if unknown:
        from_one = 0 not in labels and unknown == [num_classes]
        hint = "if they count the classes from 1, subtract 1 from each of them; otherwise, " if from_one else ""
        raise DataError(
            f"{path}: has the labels {unknown}, but the dataset has the classes 0..{num_classes - 1} and ignore_label "
            f"{ignore_label}; {hint}correct the labels, the dataset's classes or its ignore_label"
        )


def _from_panoptic(path: str, segments_info: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> GroundTruth:
    ids, rles = _encode(read_panoptic_ids(path), size, path)
    info = {segment["id"]: segment for segment in segments_info}
    # Ids that the json does not list are skipped like void. In panopticapi only id 0 is void: a segment predicted on
    # an unlisted id counts as a false positive.
    listed = [(info[i], rle) for i, rle in zip(ids, rles, strict=True) if i in info]
    return _ground_truth(
        size,
        [rle for _, rle in listed],
        classes=[segment["category_id"] for segment, _ in listed],
        is_thing=[segment["isthing"] for segment, _ in listed],
        is_crowd=[bool(segment.get("iscrowd", 0)) for segment, _ in listed],
    )


def _from_label_map(path: str, size: tuple[int, int], num_classes: int, ignore_label: int) -> GroundTruth:
    ids, rles = _encode(read_label_map(path), size, path)
    check_labels(path, ids, num_classes, ignore_label)
    known = [(i, rle) for i, rle in zip(ids, rles, strict=True) if i != ignore_label]
    return _ground_truth(
        size,
        [rle for _, rle in known],
        classes=[i for i, _ in known],
        is_thing=[False] * len(known),
        is_crowd=[False] * len(known),
    )


def _from_annotations(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], image: str) -> GroundTruth:
    masks = []
    for i, annotation in enumerate(annotations, start=1):
        try:
            masks.append(rle.from_json(annotation.get("segmentation"), *size))
        except MaskError as error:
            raise DataError(f"{image}: annotation number {i} of this image is invalid: {error}") from error
    return _ground_truth(
        size,
        masks,
        classes=[annotation["category_id"] for annotation in annotations],
        is_thing=[True] * len(annotations),
        is_crowd=[bool(annotation.get("iscrowd", 0)) for annotation in annotations],
    )


def _encode(labels: np.ndarray, size: tuple[int, int], path: str) -> tuple[list[int], list[bytes]]:
    if labels.shape != size:
        raise DataError(
            f"{path}: is {labels.shape} (height, width), but its image is {size}; use the annotation of this image"
        )
    ids, rles = encode_labels(labels)
    return [int(i) for i in ids], list(rles)


def _ground_truth(
    size: tuple[int, int], rles: Sequence[bytes], *, classes: list[int], is_thing: list[bool], is_crowd: list[bool]
) -> GroundTruth:
    return GroundTruth(
        Patches.from_rles(*size, rles),
        np.asarray(classes, dtype=np.int64),
        np.asarray(is_thing, dtype=bool),
        np.asarray(is_crowd, dtype=bool),
    )
