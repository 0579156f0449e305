"""COD10K: instances of 69 kinds of camouflaged animals, on which the paper shows that prompts carry over (Figure 12).

Layout under DETECTRON2_DATASETS, where scripts/prepare_cod10k.py makes the jsons of the release:

    cod10k/
      {Train,Test}/Image/COD10K-CAM-*.jpg
      {train,test}.json                       COCO's instance format
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data.datasets import load_coco_json

from samcp.data.vocabulary import Vocabulary

from .catalog import need, register


def register_cod10k(root: str | os.PathLike[str] | None = None) -> None:
    """Register cod10k_train and cod10k_test, of the images with camouflage; files are read when they are asked for.

    Args:
        root: the folder that holds cod10k; default, the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "cod10k"
    classes = Vocabulary.load("cod10k").names
    for split in ("train", "test"):
        name, images, listed = f"cod10k_{split}", folder / split.title() / "Image", folder / f"{split}.json"
        register(
            name,
            partial(_load, name, images, listed),
            evaluator_type="coco",
            image_root=str(images),
            json_file=str(listed),
            thing_classes=list(classes),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
            vocabulary="cod10k",
        )


def _load(name: str, images: Path, listed: Path) -> list[dict[str, Any]]:
    need(listed, "prepare_cod10k.py")
    return load_coco_json(str(listed), str(images), name)
