"""Small panoptic dataset of drawn scenes: five things and four stuff classes.

Its folder (by default `synthetic` under DETECTRON2_DATASETS) has the layout of :mod:`samcp.data.datasets.drawn`, with
the splits train and val, and its parameters in synthetic.json.
"""

import os
from pathlib import Path

from samcp.data.datasets.drawn import make_categories, register_split
from samcp.data.datasets.synthetic.scenes import STUFF, THINGS

SPLITS = ("train", "val")
CATEGORIES = make_categories(THINGS, STUFF)


def register_synthetic(folder: str | os.PathLike[str] | None = None) -> None:
    """Register synthetic_train and synthetic_val as COCO panoptic datasets; files are read on first use.

    Replaces an earlier registration.

    Args:
        folder: as in make_synthetic_dataset; default: `synthetic` under DETECTRON2_DATASETS.
    """
    folder = Path(folder or os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "synthetic"))
    for split in SPLITS:
        register_split(f"synthetic_{split}", folder, split, split, CATEGORIES)
