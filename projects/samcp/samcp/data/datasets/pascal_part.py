"""Pascal-Part: instances of 93 kinds of parts in images of Pascal VOC 2010, with or without the 20 kinds of objects.

Layout under DETECTRON2_DATASETS, where scripts/prepare_pascal_part.py makes the jsons of the release:

    pascal_part/
      VOCdevkit/VOC2010/JPEGImages/NAME.jpg
      {train,val}.json, {train,val}_general.json      COCO's instance format
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from samcp.data.vocabulary import Vocabulary

from .catalog import need, register

# In words, in the order of Pascal VOC.
OBJECTS = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorcycle", "person", "potted plant", "sheep", "sofa", "train", "television",
)  # fmt: skip


def register_pascal_part(root: str | os.PathLike[str] | None = None) -> None:
    """Register pascal_part_{train,val} and pascal_part_general_{train,val}; files are read when they are asked for.

    The parts have the same contiguous ids in both.

    Args:
        root: the folder that holds pascal_part; default, the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "pascal_part"
    parts = Vocabulary.load("pascal_part").names
    for split in ("train", "val"):
        _register(f"pascal_part_{split}", folder, f"{split}.json", parts, vocabulary="pascal_part")
        _register(f"pascal_part_general_{split}", folder, f"{split}_general.json", (*parts, *OBJECTS))


def _register(name: str, folder: Path, file: str, classes: tuple[str, ...], **metadata: Any) -> None:
    images, listed = folder / "VOCdevkit" / "VOC2010" / "JPEGImages", folder / file
    register(
        name,
        partial(_load, name, images, listed),
        evaluator_type="coco",
        image_root=str(images),
        json_file=str(listed),
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        **metadata,
    )


def _load(name: str, images: Path, listed: Path) -> list[dict[str, Any]]:
    need(listed, "prepare_pascal_part.py")
    return load_coco_json(str(listed), str(images), name)
