"""Scenes of the miniature world in COCO's panoptic layout, with annotations of parts.

Its folder (by default `miniature` under DETECTRON2_DATASETS) has the layout of :mod:`samcp.data.datasets.drawn`, with a
split per style of :mod:`samcp.miniature.scenes`, and its parameters in miniature.json. The splits parts_train and
parts_val are further annotations of the images of train and val: parts of things, and

    annotations/general_{train,val}.json      parts and whole things, in COCO's instance format
"""

import os
from pathlib import Path

from samcp.data.datasets.catalog import register_instances
from samcp.data.datasets.drawn import Category, make_categories, register_split
from samcp.miniature.scenes import STYLES, Style
from samcp.miniature.world import PART_CLASSES, SEEN, STUFF, THINGS

SPLITS_WITH_PARTS = ("train", "val")
PARTS = make_categories(PART_CLASSES, ())
GENERAL_CLASSES = (*PART_CLASSES, *(name for name in THINGS if name in SEEN))


def register_miniature(folder: str | os.PathLike[str] | None = None) -> None:
    """Register miniature_SPLIT, miniature_parts_{train,val} and miniature_parts_general_{train,val}.

    Files are read on first use. Replaces an earlier registration. Parts have the same contiguous ids in both.

    Args:
        folder: as in make_miniature_dataset; default: `miniature` under DETECTRON2_DATASETS.
    """
    folder = Path(folder or os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "miniature"))
    for split, style in STYLES.items():
        register_split(f"miniature_{split}", folder, split, split, categories_of(style))
    for split in SPLITS_WITH_PARTS:
        register_split(f"miniature_parts_{split}", folder, split, f"parts_{split}", PARTS)
        listed = folder / "annotations" / f"general_{split}.json"
        name = f"miniature_parts_general_{split}"
        register_instances(name, listed, folder / split, GENERAL_CLASSES, made_by="prepare_miniature.py")


def categories_of(style: Style) -> list[Category]:
    """Return the categories of a split; a class has the same id in all splits."""
    return [category for category in make_categories(THINGS, STUFF) if category["name"] in style.classes]
