"""Small panoptic dataset of drawn scenes: five things and four stuff classes, in COCO's layout.

Layout of its folder (by default `synthetic` under DETECTRON2_DATASETS):

    train/, val/                       NAME.jpg
    panoptic_train/, panoptic_val/     NAME.png, ids as in COCO's panoptic format
    annotations/                       panoptic_{train,val}.json, instances_{train,val}.json
    synthetic.json                     its parameters; written last
"""

import os
from pathlib import Path
from typing import Any

from detectron2.data.datasets import register_coco_panoptic

from samcp.data.datasets.catalog import unregister
from samcp.data.datasets.synthetic.scenes import STUFF, THINGS

SPLITS = ("train", "val")
# Category ids have gaps, as COCO's do, so that tests detect confusion with contiguous ids.
CATEGORIES = [{"id": 2 * i + 3, "name": name, "isthing": 1} for i, name in enumerate(THINGS)] + [
    {"id": 3 * i + 101, "name": name, "isthing": 0} for i, name in enumerate(STUFF)
]
CATEGORY_IDS = {str(category["name"]): int(str(category["id"])) for category in CATEGORIES}
_COLORS = [
    (230, 25, 60), (255, 140, 0), (145, 60, 220), (240, 60, 200), (130, 70, 30),
    (90, 140, 255), (0, 170, 70), (250, 210, 40), (0, 60, 150),
]  # fmt: skip


def register_synthetic(folder: str | os.PathLike[str] | None = None) -> None:
    """Register synthetic_train and synthetic_val as COCO panoptic datasets; files are read on first use.

    Replaces an earlier registration.

    Args:
        folder: as in make_synthetic_dataset; default: `synthetic` under DETECTRON2_DATASETS.
    """
    folder = Path(folder or os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "synthetic"))
    for split in SPLITS:
        name = f"synthetic_{split}"
        unregister(name)
        register_coco_panoptic(
            name,
            _metadata(),
            image_root=str(folder / split),
            panoptic_root=str(folder / f"panoptic_{split}"),
            panoptic_json=str(folder / "annotations" / f"panoptic_{split}.json"),
            instances_json=str(folder / "annotations" / f"instances_{split}.json"),
        )


def _metadata() -> dict[str, Any]:
    """Return Detectron2's "standard" panoptic metadata: one contiguous numbering, all names in both lists."""
    names = list(CATEGORY_IDS)
    contiguous = {dataset_id: i for i, dataset_id in enumerate(CATEGORY_IDS.values())}
    things = {CATEGORY_IDS[name] for name in THINGS}
    return {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_colors": list(_COLORS),
        "stuff_colors": list(_COLORS),
        "thing_dataset_id_to_contiguous_id": {k: v for k, v in contiguous.items() if k in things},
        "stuff_dataset_id_to_contiguous_id": {k: v for k, v in contiguous.items() if k not in things},
    }
