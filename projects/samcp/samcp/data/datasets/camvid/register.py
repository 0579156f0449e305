"""CamVid: 701 street scenes in 11 classes, in the split and the size (360 x 480) of SegNet.

Layout under DETECTRON2_DATASETS, written by scripts/prepare_camvid.py:

    camvid/
      images/{train,val}/NAME.jpg or .png
      annotations/{train,val}/NAME.png    class ids 0..10, 255: void
"""

import os
from functools import partial
from pathlib import Path

from samcp.data.datasets.catalog import load_label_maps, register

# Names and colours of SegNet's 11 classes (Badrinarayanan et al., 2017).
_CLASSES: dict[str, tuple[int, int, int]] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
NUM_CLASSES = len(_CLASSES)
IGNORE_LABEL = 255
_REMEDY = "scripts/prepare_camvid.py writes camvid/{images,annotations}/{train,val}"


def register_camvid(root: str | os.PathLike[str] | None = None) -> None:
    """Register camvid_train and camvid_val; files are read on first use.

    Args:
        root: parent folder of camvid; default: the environment variable DETECTRON2_DATASETS.
    """
    base = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid"
    for split in ("train", "val"):
        images, annotations = base / "images" / split, base / "annotations" / split
        register(
            f"camvid_{split}",
            partial(load_label_maps, images, annotations, _REMEDY),
            image_root=str(images),
            sem_seg_root=str(annotations),
            evaluator_type="sem_seg",
            ignore_label=IGNORE_LABEL,
            stuff_classes=list(_CLASSES),
            stuff_colors=[list(color) for color in _CLASSES.values()],
            thing_classes=[],
            thing_dataset_id_to_contiguous_id={},
        )
