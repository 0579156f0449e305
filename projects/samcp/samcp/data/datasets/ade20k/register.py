"""ADE20K: 20210 + 2000 images in 150 classes, of which 100 are things, in the layout of Detectron2 and Mask2Former.

Detectron2 registers the label maps as ade20k_sem_seg_{train,val}; this module registers the panoptic and instance
annotations. Layout under DETECTRON2_DATASETS, written by scripts/prepare_ade20k.py:

    ADEChallengeData2016/
      images/{training,validation}/NAME.jpg
      annotations_detectron2/{training,validation}/NAME.png     class ids 0..149, 255: void
      ade20k_panoptic_{train,val}/NAME.png, and .json           COCO's panoptic format, with the same class ids
      ade20k_instance_{train,val}.json                          COCO's instance format, with the same class ids
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from samcp.data.datasets.catalog import as_vocabulary, need, register
from samcp.data.validation.annotations import read_json
from samcp.vocabulary import Vocabulary

CLASSES = Vocabulary.load("ade20k")
SPLITS = {"train": "training", "val": "validation"}  # name in Detectron2 -> folder of the release
# Class id of a thing -> its rank among the things.
_THINGS = {int(i): rank for rank, i in enumerate(np.flatnonzero(CLASSES.is_thing))}
_PREPARE = "prepare_ade20k.py"


def register_ade20k(root: str | os.PathLike[str] | None = None) -> None:
    """Register ade20k_panoptic_{train,val} and ade20k_instance_{train,val}; files are read on first use.

    Also sets the vocabulary of Detectron2's ade20k_sem_seg_{train,val}.

    Args:
        root: parent folder of ADEChallengeData2016; default: the environment variable DETECTRON2_DATASETS.
    """
    folder = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "ADEChallengeData2016"
    for split in SPLITS:
        images = folder / "images" / SPLITS[split]
        instances = folder / f"ade20k_instance_{split}.json"
        paths = {"image_root": str(images), "json_file": str(instances)}
        register(
            f"ade20k_panoptic_{split}",
            partial(_load_panoptic, folder, split),
            evaluator_type="coco_panoptic_seg",
            panoptic_root=str(folder / f"ade20k_panoptic_{split}"),
            panoptic_json=str(folder / f"ade20k_panoptic_{split}.json"),
            label_divisor=1000,
            ignore_label=255,
            vocabulary="ade20k",
            thing_classes=list(CLASSES.names),
            stuff_classes=list(CLASSES.names),
            thing_dataset_id_to_contiguous_id={i: i for i in _THINGS},
            stuff_dataset_id_to_contiguous_id={i: i for i in range(len(CLASSES.names)) if i not in _THINGS},
            **paths,
        )
        register(
            f"ade20k_instance_{split}",
            partial(_load_instances, instances, images),
            evaluator_type="coco",
            vocabulary=as_vocabulary(CLASSES.words[i] for i in _THINGS),
            thing_classes=[CLASSES.names[i] for i in _THINGS],
            thing_dataset_id_to_contiguous_id=_THINGS,
            **paths,
        )
        MetadataCatalog.get(f"ade20k_sem_seg_{split}").set(vocabulary="ade20k")


def _load_panoptic(folder: Path, split: str) -> list[dict[str, Any]]:
    """Load records; Detectron2's loader requires numeric image ids, and these are names."""
    listed = folder / f"ade20k_panoptic_{split}.json"
    need(listed, _PREPARE)
    content = read_json(listed)
    is_thing = {category["id"]: bool(category["isthing"]) for category in content["categories"]}
    sem_seg_root = folder / "annotations_detectron2" / SPLITS[split]
    return [
        {
            "file_name": str(folder / "images" / SPLITS[split] / f"{annotation['image_id']}.jpg"),
            "image_id": annotation["image_id"],
            "pan_seg_file_name": str(folder / f"ade20k_panoptic_{split}" / annotation["file_name"]),
            "sem_seg_file_name": str(sem_seg_root / annotation["file_name"]),
            "segments_info": [{**s, "isthing": is_thing[s["category_id"]]} for s in annotation["segments_info"]],
        }
        for annotation in content["annotations"]
    ]


def _load_instances(listed: Path, images: Path) -> list[dict[str, Any]]:
    """Load records with the rank of the thing as category id.

    Detectron2's registration of COCO jsons would require the names of the json to be those of the vocabulary.
    """
    need(listed, _PREPARE)
    records = load_coco_json(str(listed), str(images))
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = _THINGS[annotation["category_id"]]
    return records
