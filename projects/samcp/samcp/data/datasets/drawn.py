"""Writing and registration of drawn datasets in COCO's panoptic layout.

SPLIT/                 NAME.jpg
panoptic_SPLIT/        NAME.png, ids as in COCO's panoptic format
annotations/           panoptic_SPLIT.json, instances_SPLIT.json
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets import register_coco_panoptic
from numpy.typing import NDArray

from samcp.data.datasets.catalog import unregister
from samcp.data.files import write_image, write_json, write_panoptic_ids
from samcp.errors import DataError

Category = dict[str, Any]  # COCO's: id, name, isthing


@dataclass(frozen=True)
class Segment:
    """Visible pixels of one thing or stuff class: class name, mask (H, W), and whether it is a crowd."""

    name: str
    mask: NDArray[np.bool_]
    crowd: bool = False


def make_categories(things: Sequence[str], stuff: Sequence[str]) -> list[Category]:
    """Return COCO's categories; the ids have gaps, as COCO's do, so that tests detect confusion with contiguous ids."""
    return [{"id": 2 * i + 3, "name": name, "isthing": 1} for i, name in enumerate(things)] + [
        {"id": 3 * i + 101, "name": name, "isthing": 0} for i, name in enumerate(stuff)
    ]


def make_once(folder: Path, name: str, record: Mapping[str, Any], make: Callable[[], None]) -> None:
    """Write a dataset unless the folder has it already.

    Args:
        folder: of the dataset.
        name: of the dataset; the parameters are in NAME.json, which is written last.
        record: its parameters.
        make: writes the other files.

    Raises:
        DataError: the folder has a dataset made with other parameters.
    """
    made = folder / f"{name}.json"
    if not made.exists():
        make()
        write_json(made, record)
    found = json.loads(made.read_text())
    if found != record:
        raise DataError(f"{folder}: has a {name} dataset made with {found}, not {record}; choose another folder")


def write_drawing(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (H, W, 3) as a JPEG of high quality."""
    write_image(path, image, "JPEG", quality=95, subsampling=0)


class SplitWriter:
    """Writer of the annotations of a split.

    Args:
        folder: of the dataset.
        split: name in the paths of the annotations.
        categories: of the segments.
    """

    def __init__(self, folder: Path, split: str, categories: Sequence[Category]) -> None:
        self._folder = folder
        self._split = split
        self._categories = categories
        self._ids = {category["name"]: category["id"] for category in categories}
        self._things = [category for category in categories if category["isthing"]]
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []

    def add(self, name: str, size: tuple[int, int], segments: Sequence[Segment]) -> None:
        """Write the panoptic PNG of the next image.

        Args:
            name: of the image, without suffix.
            size: (height, width).
            segments: without overlap; pixels without a segment are void.
        """
        image_id = len(self._images) + 1
        ids, infos = _panoptic_map(segments, self._ids, size)
        write_panoptic_ids(self._folder / f"panoptic_{self._split}" / f"{name}.png", ids)
        self._images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        self._panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
        names = {category["name"] for category in self._things}
        for segment in segments:
            if segment.name in names:
                number = len(self._instances) + 1
                self._instances.append(instance(segment, image_id, number, self._ids[segment.name]))

    def finish(self) -> None:
        """Write the jsons."""
        for kind, annotations, categories in (
            ("panoptic", self._panoptic, self._categories),
            ("instances", self._instances, self._things),
        ):
            path = self._folder / "annotations" / f"{kind}_{self._split}.json"
            write_json(path, {"images": self._images, "annotations": annotations, "categories": categories})


def instance(segment: Segment, image_id: int, annotation_id: int, category_id: int) -> dict[str, Any]:
    """Return an annotation of COCO's instance format."""
    rle = mask_util.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
        **_extent(segment),
    }


def register_split(name: str, folder: Path, images: str, split: str, categories: Sequence[Category]) -> None:
    """Register a split as a COCO panoptic dataset, replacing an earlier registration; files are read on first use.

    Args:
        name: of the dataset.
        folder: that `SplitWriter` wrote.
        images: name of the image folder.
        split: name in the paths of the annotations.
        categories: as they were written.
    """
    unregister(name)
    register_coco_panoptic(
        name,
        _metadata(categories),
        image_root=str(folder / images),
        panoptic_root=str(folder / f"panoptic_{split}"),
        panoptic_json=str(folder / "annotations" / f"panoptic_{split}.json"),
        instances_json=str(folder / "annotations" / f"instances_{split}.json"),
    )


def _metadata(categories: Sequence[Category]) -> dict[str, Any]:
    """Return Detectron2's "standard" panoptic metadata: one contiguous numbering, all names in both lists."""
    names = [category["name"] for category in categories]
    contiguous = [(category["id"], i, category["isthing"]) for i, category in enumerate(categories)]
    return {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {k: i for k, i, isthing in contiguous if isthing},
        "stuff_dataset_id_to_contiguous_id": {k: i for k, i, isthing in contiguous if not isthing},
    }


def _panoptic_map(
    segments: Sequence[Segment], category_ids: Mapping[str, int], size: tuple[int, int]
) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
    """Return (H, W) ids, 0 for void, and COCO's segments_info."""
    ids = np.zeros(size, np.uint32)
    infos = []
    for index, segment in enumerate(segments):
        category_id = category_ids[segment.name]
        segment_id = 1000 * category_id + index  # more than one byte, as in COCO
        ids[segment.mask] = segment_id
        infos.append({"id": segment_id, "category_id": category_id, **_extent(segment)})
    return ids, infos


def _extent(segment: Segment) -> dict[str, Any]:
    y, x = np.nonzero(segment.mask)
    box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
    return {"area": int(segment.mask.sum()), "bbox": [int(v) for v in box], "iscrowd": int(segment.crowd)}
