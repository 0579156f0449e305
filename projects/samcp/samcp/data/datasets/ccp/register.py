"""Clothing Co-Parsing: street photographs of people in 59 classes of clothes, skin and hair (Yang et al., CVPR 2014).

Names that patches of 800 images cannot tell apart (jacket and blazer), or that are in fewer than 30 of them (cape), are
merged, which leaves 16 classes.

Layout under DETECTRON2_DATASETS, where scripts/prepare_ccp.py writes `labels`:

    ccp/
      images/{train,val}/ID.jpg
      annotations/{train,val}/ID.png    labels of the release, 0..58
      labels/{train,val}/ID.png         class ids 0..15
"""

import os
from functools import partial
from pathlib import Path

from samcp.data.datasets.catalog import load_label_maps, register

# Classes of the release, in the order of its labels.
_RELEASED = (  # noqa: SIM905 (a list would take 59 lines)
    "background accessories bag belt blazer blouse bodysuit boots bra bracelet cape cardigan clogs coat dress earrings "
    "flats glasses gloves hair hat heels hoodie intimate jacket jeans jumper leggings loafers necklace panties pants "
    "pumps purse ring romper sandals scarf shirt shoes shorts skin skirt sneakers socks stockings suit sunglasses "
    "sweater sweatshirt swimwear t-shirt tie tights top vest wallet watch wedges"
).split()
_MERGED = {
    "top": "blouse bra cardigan hoodie intimate jumper shirt sweater sweatshirt t-shirt vest",
    "coat": "blazer cape jacket suit",
    "dress": "bodysuit romper swimwear",
    "pants": "jeans leggings",
    "shorts": "panties",
    "stockings": "socks tights",
    "shoes": "boots clogs flats heels loafers pumps sandals sneakers wedges",
    "sunglasses": "glasses",
    "bag": "purse wallet",
    "accessories": "bracelet earrings gloves necklace ring scarf tie watch",
}
_CLASS_OF = {member: name for name, members in _MERGED.items() for member in members.split()}

CLASSES = tuple(dict.fromkeys(_CLASS_OF.get(name, name) for name in _RELEASED))
CLASS_IDS = tuple(CLASSES.index(_CLASS_OF.get(name, name)) for name in _RELEASED)  # of each label of the release
IGNORE_LABEL = 255
_REMEDY = "scripts/prepare_ccp.py writes ccp/labels/{train,val}"


def register_ccp(root: str | os.PathLike[str] | None = None) -> None:
    """Register ccp_train and ccp_val; files are read on first use.

    Args:
        root: parent folder of ccp; default: the environment variable DETECTRON2_DATASETS.
    """
    base = Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")) / "ccp"
    for split in ("train", "val"):
        images, labels = base / "images" / split, base / "labels" / split
        register(
            f"ccp_{split}",
            partial(load_label_maps, images, labels, _REMEDY),
            image_root=str(images),
            sem_seg_root=str(labels),
            evaluator_type="sem_seg",
            ignore_label=IGNORE_LABEL,
            stuff_classes=list(CLASSES),
            thing_classes=[],
            thing_dataset_id_to_contiguous_id={},
        )
