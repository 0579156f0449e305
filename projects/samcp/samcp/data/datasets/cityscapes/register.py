"""Cityscapes: 2975 + 500 street scenes of 2048 x 1024 pixels in 11 kinds of stuff and 8 things.

Detectron2 registers cityscapes_fine_panoptic_{train,val} too, but its loader does not set isthing, and does not find
the label maps if a folder's name has a dot. Layout under DETECTRON2_DATASETS; scripts/prepare_cityscapes.py writes the
files that the release lacks:

    cityscapes/
      leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
      gtFine/{train,val}/CITY/NAME_gtFine_{instanceIds,labelIds,labelTrainIds}.png
      gtFine/cityscapes_panoptic_{train,val}/NAME_gtFine_panoptic.png, and .json
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from samcp.data.datasets.catalog import need, register
from samcp.data.validation.annotations import read_json


def register_cityscapes(root: str | os.PathLike[str] | None = None) -> None:
    """Register cityscapes_fine_panoptic_{train,val}, replacing Detectron2's; files are read on first use.

    Also sets the vocabulary of Detectron2's cityscapes_fine_sem_seg_{train,val}.

    Args:
        root: parent folder of cityscapes; default: the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "cityscapes"
    for split in ("train", "val"):
        name = f"cityscapes_fine_panoptic_{split}"
        panoptic = folder / "gtFine" / f"cityscapes_panoptic_{split}"
        ours = {
            "image_root": str(folder / "leftImg8bit" / split),
            "panoptic_root": str(panoptic),
            "panoptic_json": str(panoptic.with_suffix(".json")),
            "gt_dir": str(folder / "gtFine" / split),
            "vocabulary": "cityscapes",
        }
        detectron2 = {k: v for k, v in MetadataCatalog.get(name).as_dict().items() if k != "name"}
        register(name, partial(_load, folder, split), **{**detectron2, **ours})
        MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}").set(vocabulary="cityscapes")


def _load(folder: Path, split: str) -> list[dict[str, Any]]:
    """Load records."""
    panoptic = folder / "gtFine" / f"cityscapes_panoptic_{split}"
    need(panoptic.with_suffix(".json"), "prepare_cityscapes.py")
    content = read_json(panoptic.with_suffix(".json"))
    metadata = MetadataCatalog.get(f"cityscapes_fine_panoptic_{split}")
    things = metadata.thing_dataset_id_to_contiguous_id
    class_of = {**metadata.stuff_dataset_id_to_contiguous_id, **things}
    return [
        {
            "file_name": str(image_file(folder, split, annotation["image_id"])),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(panoptic / annotation["file_name"]),
            "sem_seg_file_name": str(_labels(folder, split, annotation["image_id"])),
            "segments_info": [
                {**s, "category_id": class_of[s["category_id"]], "isthing": s["category_id"] in things}
                for s in annotation["segments_info"]
            ],
        }
        for annotation in content["annotations"]
    ]


def image_file(folder: Path, split: str, name: str) -> Path:
    """Return the path of an image of a split by its name, such as munster_000001_000019."""
    return folder / "leftImg8bit" / split / _city(name) / f"{name}_leftImg8bit.png"


def _labels(folder: Path, split: str, name: str) -> Path:
    return folder / "gtFine" / split / _city(name) / f"{name}_gtFine_labelTrainIds.png"


def _city(name: str) -> str:
    return name.split("_")[0]
