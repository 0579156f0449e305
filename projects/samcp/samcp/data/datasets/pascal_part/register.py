"""Pascal-Part: instances of 93 part classes in images of Pascal VOC 2010, with or without the 20 object classes.

Layout under DETECTRON2_DATASETS; scripts/prepare_pascal_part.py writes the jsons:

    pascal_part/
      VOCdevkit/VOC2010/JPEGImages/NAME.jpg
      {train,val}.json, {train,val}_general.json      COCO's instance format
"""

import os
from functools import partial
from pathlib import Path

from samcp.data.datasets.catalog import as_vocabulary, register_instances
from samcp.vocabulary import Vocabulary

# Names of the object classes in the order of Pascal VOC.
OBJECTS = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorcycle", "person", "potted plant", "sheep", "sofa", "train", "television",
)  # fmt: skip


def register_pascal_part(root: str | os.PathLike[str] | None = None) -> None:
    """Register pascal_part_{train,val} and pascal_part_general_{train,val}; files are read on first use.

    Parts have the same contiguous ids in both.

    Args:
        root: parent folder of pascal_part; default: the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "pascal_part"
    images = folder / "VOCdevkit" / "VOC2010" / "JPEGImages"
    parts = Vocabulary.load("pascal_part")
    general_words = as_vocabulary([*parts.words, *((name,) for name in OBJECTS)])
    register_jsons = partial(register_instances, images=images, made_by="prepare_pascal_part.py")
    for split in ("train", "val"):
        listed, general = folder / f"{split}.json", folder / f"{split}_general.json"
        register_jsons(f"pascal_part_{split}", listed, classes=parts.names, vocabulary="pascal_part")
        classes = (*parts.names, *OBJECTS)
        register_jsons(f"pascal_part_general_{split}", general, classes=classes, vocabulary=general_words)
