"""Drawing of the miniature dataset; see :mod:`samcp.data.datasets.miniature.register` for its layout."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import trange

from samcp.data.datasets.drawn import Segment, SplitWriter, instance, make_once, write_drawing
from samcp.data.datasets.miniature.register import GENERAL_CLASSES, PARTS, SPLITS_WITH_PARTS, categories_of
from samcp.data.files import write_json
from samcp.miniature.scenes import SIZE, STYLES, DrawnScene, draw_scene

_FORMAT = 1  # incremented when the same parameters give other images


def make_miniature_dataset(
    folder: str | os.PathLike[str], num_train: int = 600, num_val: int = 100, seed: int = 0
) -> None:
    """Write the dataset, unless the folder has it already.

    Args:
        folder: created if missing.
        num_train: number of training images.
        num_val: number of images of each other split.
        seed: of the random numbers; image i of a split depends on nothing else.

    Raises:
        DataError: the folder has a dataset made with other arguments.
    """
    folder = Path(folder)
    record = {"format": _FORMAT, "num_train": num_train, "num_val": num_val, "seed": seed}

    def make() -> None:
        for split in STYLES:
            _write_split(folder, split, num_train if split == "train" else num_val, seed)

    make_once(folder, "miniature", record, make)


def draw_split(split: str, count: int, seed: int) -> Iterator[tuple[str, DrawnScene]]:
    """Draw the first images of a split, with their names."""
    number = list(STYLES).index(split)
    for index in trange(count, desc=split):
        yield f"{split}_{index:05d}", draw_scene(np.random.default_rng([seed, number, index]), STYLES[split])


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    whole = SplitWriter(folder, split, categories_of(STYLES[split]))
    parts = SplitWriter(folder, f"parts_{split}", PARTS)
    general = _General()
    for name, scene in draw_split(split, count, seed):
        write_drawing(folder / split / f"{name}.jpg", scene.image)
        whole.add(name, SIZE, [Segment(drawn.name, drawn.mask) for drawn in scene.objects])
        if split in SPLITS_WITH_PARTS:
            parts.add(name, SIZE, _parts(scene))
            general.add(name, scene)
    whole.finish()
    if split in SPLITS_WITH_PARTS:
        parts.finish()
        write_json(folder / "annotations" / f"general_{split}.json", general.json)


def _parts(scene: DrawnScene) -> list[Segment]:
    return [Segment(f"{drawn.name} {part}", mask) for drawn in scene.objects for part, mask in drawn.parts.items()]


class _General:
    """COCO instance json of parts and whole things, with category ids 1..C."""

    def __init__(self) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(GENERAL_CLASSES, start=1)]
        self.json: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}

    def add(self, name: str, scene: DrawnScene) -> None:
        """Add the next image."""
        height, width = SIZE
        image_id = len(self.json["images"]) + 1
        self.json["images"].append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
        things = [Segment(drawn.name, drawn.mask) for drawn in scene.objects if drawn.parts]
        annotations = self.json["annotations"]
        for segment in _parts(scene) + things:
            category_id = GENERAL_CLASSES.index(segment.name) + 1
            annotations.append(instance(segment, image_id, len(annotations) + 1, category_id))
