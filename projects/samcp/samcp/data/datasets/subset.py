"""Random subsets of a dataset, registered as datasets."""

import json
import os
import random
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from samcp.data.build import is_labelled, load_dataset
from samcp.data.datasets.catalog import register
from samcp.data.files import write_json
from samcp.errors import DataError

_JSON_KEYS = ("panoptic_json", "json_file")  # read by Detectron2's evaluators


def register_subset(dataset: str, count: int, folder: str | os.PathLike[str], *, seed: int = 0) -> str:
    """Register a random subset of the images with ground truth.

    COCO's evaluators evaluate all images of their json files, so the subset's part of each json is written.

    Args:
        dataset: registered in Detectron2.
        count: number of images.
        folder: for the json files.
        seed: of the random selection.

    Returns:
        The name of the subset.

    Raises:
        DataError: the dataset is not registered, cannot be read, or has fewer images.
    """
    annotated = [record for record in load_dataset(dataset) if is_labelled(record)]
    if not 0 < count <= len(annotated):
        raise DataError(f"dataset {dataset!r} has {len(annotated)} images with ground truth; {count} is out of range")
    records = [annotated[i] for i in sorted(random.Random(seed).sample(range(len(annotated)), count))]
    name = f"{dataset}_{count}_seed_{seed}"
    metadata = {k: v for k, v in MetadataCatalog.get(dataset).as_dict().items() if k != "name"}
    for key in _JSON_KEYS:
        if metadata.get(key):
            part = Path(folder) / f"{name}_{Path(metadata[key]).name}"
            metadata[key] = _write_part(metadata[key], {r["image_id"] for r in records}, part)
    if metadata.get("evaluator_type") == "cityscapes_panoptic_seg":
        # The AP of Cityscapes' own code needs predictions of all images in a folder; the other metrics do not.
        metadata["evaluator_type"] = "coco_panoptic_seg"
    register(name, lambda: [dict(r) for r in records], **metadata)
    return name


def _write_part(file: str, image_ids: set[Any], part: Path) -> str:
    """Write the part of a COCO json for the given images; return its path."""
    content = json.loads(Path(file).read_text())
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in image_ids]
    write_json(part, content)
    return str(part)
