"""Drawing of the synthetic dataset; see :mod:`samcp.data.datasets.synthetic.register` for its layout."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from samcp.data.datasets.synthetic.register import CATEGORIES, CATEGORY_IDS, SPLITS
from samcp.data.datasets.synthetic.scenes import THINGS, Segment, draw_scene
from samcp.data.files import write_image, write_json, write_panoptic_ids
from samcp.errors import DataError

_FORMAT = 1  # incremented when the same parameters give other images


def make_synthetic_dataset(
    folder: str | os.PathLike[str],
    num_train: int,
    num_val: int,
    size: tuple[int, int] = (160, 224),
    seed: int = 0,
) -> None:
    """Write the dataset, unless the folder has it already; equal arguments give equal images.

    Args:
        folder: created if missing.
        num_train, num_val: number of images; image i of a split does not depend on the number.
        size: (height, width) of every image in pixels.
        seed: of the random numbers.

    Raises:
        DataError: the folder has a dataset made with other arguments.
    """
    folder = Path(folder)
    record = {"format": _FORMAT, "num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed}
    made = folder / "synthetic.json"
    if made.exists():
        found = json.loads(made.read_text())
        if found != record:
            raise DataError(f"{folder}: has a synthetic dataset made with {found}, not {record}; choose another folder")
        return
    for number, (split, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True)):
        _write_split(folder, split, number, count, size, seed)
    write_json(made, record)


def _write_split(folder: Path, split: str, number: int, count: int, size: tuple[int, int], seed: int) -> None:
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for index in range(count):
        name = f"{split}_{index:05d}"
        image, segments = draw_scene(np.random.default_rng([seed, number, index]), *size)
        write_image(folder / split / f"{name}.jpg", image, "JPEG", quality=95, subsampling=0)
        ids, infos = _panoptic_map(segments, size)
        write_panoptic_ids(folder / f"panoptic_{split}" / f"{name}.png", ids)
        image_id = index + 1
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos})
        instances += [
            _instance(segment, image_id, len(instances) + i) for i, segment in enumerate(_things(segments), start=1)
        ]
    things = [category for category in CATEGORIES if category["isthing"]]
    _write_json(folder, f"panoptic_{split}", images, panoptic, CATEGORIES)
    _write_json(folder, f"instances_{split}", images, instances, things)


def _panoptic_map(segments: list[Segment], size: tuple[int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return (H, W) ids, 0 for void, and COCO's segments_info."""
    ids = np.zeros(size, np.uint32)
    infos = []
    for index, segment in enumerate(segments):
        segment_id = 1000 * CATEGORY_IDS[segment.name] + index  # more than one byte, as in COCO
        ids[segment.mask] = segment_id
        infos.append({"id": segment_id, "category_id": CATEGORY_IDS[segment.name], **_extent(segment)})
    return ids, infos


def _instance(segment: Segment, image_id: int, annotation_id: int) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CATEGORY_IDS[segment.name],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
        **_extent(segment),
    }


def _extent(segment: Segment) -> dict[str, Any]:
    y, x = np.nonzero(segment.mask)
    box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
    return {"area": int(segment.mask.sum()), "bbox": [int(v) for v in box], "iscrowd": int(segment.crowd)}


def _things(segments: list[Segment]) -> list[Segment]:
    return [segment for segment in segments if segment.name in THINGS]


def _write_json(
    folder: Path,
    name: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> None:
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "annotations" / f"{name}.json", content)
