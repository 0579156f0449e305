"""BSDS500: natural photographs, each segmented by several people (Arbelaez et al., TPAMI 2011).

Layout under DETECTRON2_DATASETS:

    bsds500/
      images/{train,val}/ID.jpg
      segmentations/{train,val}/ID_K.png    regions of annotator K, numbered from 1

Every region of every annotator is an object of the one class "region"; those of different annotators overlap.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from proposal_cache import rle
from samcp.data.datasets.catalog import register
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError


def register_bsds500(root: str | os.PathLike[str] | None = None) -> None:
    """Register bsds500_train and bsds500_val; files are read on first use.

    Args:
        root: parent folder of bsds500; default: the environment variable DETECTRON2_DATASETS.
    """
    base = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "bsds500"
    for split in ("train", "val"):
        images = base / "images" / split
        register(
            f"bsds500_{split}",
            partial(_load, images, base / "segmentations" / split),
            image_root=str(images),
            evaluator_type="coco",
            several_annotators=True,
            thing_classes=["region"],
            thing_dataset_id_to_contiguous_id={1: 0},
        )


def _load(images: Path, segmentations: Path) -> list[dict[str, Any]]:
    """Load records in the order of file names. Raises FileNotFoundError if a folder is missing."""
    for folder in (images, segmentations):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing; copy BSDS500's {folder.parent.name}/{folder.name} there")
    return [_record(image, segmentations) for image in sorted(images.glob("*.jpg"))]


def _record(image: Path, segmentations: Path) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    height = width = 0
    for file in sorted(segmentations.glob(f"{image.stem}_*.png")):
        labels = read_label_map(str(file))
        height, width = labels.shape
        _, rles = rle.encode_labels(labels)
        _, boxes = rle.area_and_box(rles, height, width)
        annotations += [
            {"segmentation": coco, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
            for coco, box in zip(rle.to_coco(rles, height, width), boxes.tolist(), strict=True)
        ]
    if not annotations:
        raise DataError(f"{segmentations / image.stem}_*.png: {image} has no segmentation; copy the dataset again")
    return {
        "file_name": str(image),
        "image_id": image.stem,
        "height": height,
        "width": width,
        "annotations": annotations,
    }
