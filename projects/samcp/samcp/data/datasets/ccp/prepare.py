"""Conversion of CCP's label maps from 59 to 16 classes."""

from functools import partial
from pathlib import Path

import numpy as np

from samcp.data.datasets.ccp.register import CLASS_IDS
from samcp.data.datasets.conversion import check_count
from samcp.data.files import write_label_map
from samcp.data.ground_truth import read_label_map
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_IMAGES = {"train": 800, "val": 100}


def prepare_ccp(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write labels/{train,val} from annotations/{train,val}; skip existing files.

    Args:
        folder: of the release; see `samcp.data.datasets.ccp.register`.
        workers: number of processes.

    Returns:
        split -> number of label maps.

    Raises:
        DataError: a split is missing, or a label map is unreadable or has other labels than the release.
    """
    return {split: _prepare_split(folder, split, workers) for split in _IMAGES}


def _prepare_split(folder: Path, split: str, workers: int) -> str:
    sources = sorted((folder / "annotations" / split).glob("*.png"))
    if not sources:
        raise DataError(f"{folder / 'annotations' / split}: no label maps; copy those of CCP there")
    check_count(f"{folder / 'annotations' / split}, label maps", len(sources), _IMAGES[split])
    parallel_map(sources, partial(_convert, folder / "labels" / split), workers=workers, title=split)
    return f"{len(sources)} label maps"


def _convert(folder: Path, source: Path) -> None:
    target = folder / source.name
    if target.exists():
        return
    labels = read_label_map(str(source))
    if labels.max() >= len(CLASS_IDS):
        raise DataError(
            f"{source}: has the label {labels.max()}, but CCP's are 0..{len(CLASS_IDS) - 1}; download the file again"
        )
    write_label_map(target, np.array(CLASS_IDS, np.uint8)[labels])
