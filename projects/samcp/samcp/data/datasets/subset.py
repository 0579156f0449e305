"""A few images of a dataset, drawn at random, as a dataset of their own."""

import json
import os
import random
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from samcp.data.build import load_dataset
from samcp.data.datasets.catalog import register
from samcp.errors import DataError

_JSON_KEYS = ("panoptic_json", "json_file")  # what Detectron2's evaluators read themselves


def register_subset(dataset: str, count: int, folder: str | os.PathLike[str], *, seed: int = 0) -> str:
    """Register ``count`` images of a dataset, drawn from those that have ground truth.

    COCO's evaluators read their json files whole, so the subset's part of each is written into a folder.

    Args:
        dataset: registered in Detectron2.
        folder: for the json files.
        seed: of the draw.

    Returns:
        The subset's name.

    Raises:
        DataError: there is no such dataset, or it cannot be read, or it has fewer images.
    """
    annotated = [r for r in load_dataset(dataset) if r.get("segments_info", True)]
    if not 0 < count <= len(annotated):
        raise DataError(f"dataset {dataset!r} has {len(annotated)} images with ground truth, {count} were asked for")
    records = [annotated[i] for i in sorted(random.Random(seed).sample(range(len(annotated)), count))]
    name = f"{dataset}_{count}_seed_{seed}"
    metadata = {k: v for k, v in MetadataCatalog.get(dataset).as_dict().items() if k != "name"}
    for key in _JSON_KEYS:
        if metadata.get(key):
            part = Path(folder) / f"{name}_{Path(metadata[key]).name}"
            metadata[key] = _write_part(metadata[key], {r["image_id"] for r in records}, part)
    register(name, lambda: [dict(r) for r in records], **metadata)
    return name


def _write_part(file: str, image_ids: set[Any], part: Path) -> str:
    """Write the part of a COCO json that is about some images; returns its path."""
    content = json.loads(Path(file).read_text())
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in image_ids]
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(content))
    return str(part)
