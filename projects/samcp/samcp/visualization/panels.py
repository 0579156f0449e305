"""Panels: pictures of one image side by side."""

from collections.abc import Mapping
from typing import Any

from detectron2.data import Metadata

from proposal_cache import Patches
from proposal_cache.visualize import draw_patches
from samcp.data.image_io import read_image
from samcp.visualization.drawing import Picture, draw_ground_truth, draw_prediction, enlarge


def panel(
    record: Mapping[str, Any], patches: Patches, prediction: Mapping[str, Any] | None, metadata: Metadata
) -> dict[str, Picture]:
    """Draw one image of a registered dataset, its patches, prediction and ground truth.

    Args:
        record: a Detectron2 record with a panoptic PNG, a semantic PNG, or annotations.
        patches: of this image.
        prediction: the model's output for the image, or None.
        metadata: of the dataset.

    Returns:
        Pictures of one size: "image", "patches", "result" (if there is a prediction) and "ground truth".

    Raises:
        DataError: the image is missing or unreadable.
        CacheError: image and patches differ in size.
    """
    image = read_image(record["file_name"], "RGB")
    pictures = {"image": enlarge(image), "patches": enlarge(draw_patches(patches, image), smooth=False)}
    if prediction is not None:
        pictures["result"] = draw_prediction(image, prediction, metadata)
    pictures["ground truth"] = draw_ground_truth(image, record, metadata)
    return pictures
