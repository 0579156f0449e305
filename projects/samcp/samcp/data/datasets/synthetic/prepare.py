"""Drawing of the synthetic dataset; see :mod:`samcp.data.datasets.synthetic.register` for its layout."""

import os
from pathlib import Path

import numpy as np

from samcp.data.datasets.drawn import SplitWriter, make_once, write_drawing
from samcp.data.datasets.synthetic.register import CATEGORIES, SPLITS
from samcp.data.datasets.synthetic.scenes import draw_scene

_FORMAT = 1  # incremented when the same parameters give other images


def make_synthetic_dataset(
    folder: str | os.PathLike[str],
    num_train: int,
    num_val: int,
    size: tuple[int, int] = (160, 224),
    seed: int = 0,
) -> None:
    """Write the dataset, unless the folder has it already; equal arguments give equal images.

    Args:
        folder: created if missing.
        num_train, num_val: number of images; image i of a split does not depend on the number.
        size: (height, width) of every image in pixels.
        seed: of the random numbers.

    Raises:
        DataError: the folder has a dataset made with other arguments.
    """
    folder = Path(folder)
    record = {"format": _FORMAT, "num_train": num_train, "num_val": num_val, "size": list(size), "seed": seed}

    def make() -> None:
        for number, (split, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True)):
            _write_split(folder, split, number, count, size, seed)

    make_once(folder, "synthetic", record, make)


def _write_split(folder: Path, split: str, number: int, count: int, size: tuple[int, int], seed: int) -> None:
    writer = SplitWriter(folder, split, CATEGORIES)
    for index in range(count):
        name = f"{split}_{index:05d}"
        image, segments = draw_scene(np.random.default_rng([seed, number, index]), *size)
        write_drawing(folder / split / f"{name}.jpg", image)
        writer.add(name, size, segments)
    writer.finish()
