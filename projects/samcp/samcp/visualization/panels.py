"""Panels: pictures of one image side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import Metadata

from proposal_cache import Patches
from proposal_cache.visualize import draw_patches
from samcp.data.image_io import read_image
from samcp.evaluation.image_quality import SegmentedImage
from samcp.regions import Regions, true_regions
from samcp.visualization.drawing import Picture, draw_comparison, draw_ground_truth, enlarge
from samcp.visualization.pages import Row

_GAP = 8  # pixels between pictures


def panel(
    record: Mapping[str, Any], patches: Patches, predicted: Regions | None, metadata: Metadata
) -> dict[str, Picture]:
    """Draw one image of a registered dataset, its patches, ground truth and prediction.

    Args:
        record: a Detectron2 record with a panoptic PNG, a semantic PNG, or annotations.
        patches: of this image.
        predicted: the model's regions, or None.
        metadata: of the dataset.

    Returns:
        Pictures of one width: "image", "patches", "ground truth", and "prediction" if there is one.

    Raises:
        DataError: the image or its ground truth is missing or unreadable.
        CacheError: image and patches differ in size.
    """
    image = read_image(record["file_name"], "RGB")
    pictures = {"image": enlarge(image), "patches": enlarge(draw_patches(patches, image), smooth=False)}
    if predicted is None:
        pictures["ground truth"] = draw_ground_truth(image, record, metadata)
        return pictures
    truth = true_regions(record, image.shape[:2], metadata)
    pictures["prediction"], pictures["ground truth"] = draw_comparison(image, predicted, truth, metadata)
    return pictures


def quality_row(image: SegmentedImage, metadata: Metadata) -> Row:
    """Return the panel of a segmented image as a row of a page, with its quality."""
    pictures = panel(image.record, image.patches, image.predicted, metadata)
    note = f"PQ {image.quality:.1f}, {len(image.patches)} patches"
    return Row(image.record["key"], pictures, note=note)


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Concatenate pictures from left to right on white, aligned at the top."""
    height = max(len(picture) for picture in pictures)
    columns = []
    for picture in pictures:
        below = ((0, height - len(picture)), (0, _GAP), (0, 0))
        columns.append(np.pad(picture, below, constant_values=255))
    return np.concatenate(columns, axis=1)[:, :-_GAP]
