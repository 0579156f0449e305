"""COD10K: instances of 69 classes of camouflaged animals (paper, Figure 12).

Layout under DETECTRON2_DATASETS; scripts/prepare_cod10k.py writes the jsons:

    cod10k/
      {Train,Test}/Image/COD10K-CAM-*.jpg
      {train,test}.json                       COCO's instance format
"""

import os
from pathlib import Path

from samcp.data.datasets.catalog import register_instances
from samcp.vocabulary import Vocabulary


def register_cod10k(root: str | os.PathLike[str] | None = None) -> None:
    """Register cod10k_train and cod10k_test, the images with camouflaged animals; files are read on first use.

    Args:
        root: parent folder of cod10k; default: the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "cod10k"
    classes = Vocabulary.load("cod10k").names
    for split in ("train", "test"):
        listed, images = folder / f"{split}.json", folder / split.title() / "Image"
        register_instances(f"cod10k_{split}", listed, images, classes, made_by="prepare_cod10k.py", vocabulary="cod10k")
