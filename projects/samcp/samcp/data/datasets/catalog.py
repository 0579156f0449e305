"""Repeatable registration in Detectron2's catalogs."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from samcp.errors import DataError


def register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset; replace an earlier registration of the name.

    Args:
        name: of the dataset.
        load: returns the records; called when they are first used.
        metadata: fields of Detectron2's Metadata.
    """
    unregister(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def unregister(name: str) -> None:
    """Remove a dataset and its metadata, if registered."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def require_registered(name: str) -> None:
    """Raise DataError unless a dataset of this name is registered."""
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, list(DatasetCatalog), n=5, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"registered are: {', '.join(sorted(DatasetCatalog))}"
        raise DataError(f"there is no dataset {name!r}; {hint}")


def load_label_maps(images: Path, labels: Path, remedy: str) -> list[dict[str, Any]]:
    """Load the records of a folder of images (.jpg or .png) with a label map NAME.png each, in the order of file names.

    Raises:
        FileNotFoundError: a folder is missing; ``remedy`` ends the message.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing; {remedy}")
    return [
        {"file_name": str(image), "image_id": image.stem, "sem_seg_file_name": str(labels / f"{image.stem}.png")}
        for image in sorted(images.iterdir())
        if image.suffix in {".jpg", ".png"}
    ]


def as_vocabulary(words: Iterable[Sequence[str]]) -> str:
    """Format the words of classes as vocabulary text, "kite, boat: ship | vessel", for a dataset's metadata.

    Used for datasets that have some of the classes of a shipped vocabulary, or more classes than it.
    """
    return ", ".join(f"{name}: {' | '.join(others)}" if others else name for name, *others in words)


def register_instances(
    name: str, listed: Path, images: Path, classes: Sequence[str], *, made_by: str, **metadata: Any
) -> None:
    """Register a COCO instance json with category ids 1..C in the order of the classes.

    Args:
        name: of the dataset.
        listed: path of the json.
        images: image folder.
        classes: C names.
        made_by: name of the script that writes the json, for the error message.
        metadata: further fields of Detectron2's Metadata.
    """
    register(
        name,
        partial(_load_instances, name, listed, images, made_by),
        evaluator_type="coco",
        image_root=str(images),
        json_file=str(listed),
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
        **metadata,
    )


def _load_instances(name: str, listed: Path, images: Path, made_by: str) -> list[dict[str, Any]]:
    need(listed, made_by)
    records: list[dict[str, Any]] = load_coco_json(str(listed), str(images), name)
    return records


def need(path: Path, made_by: str) -> None:
    """Raise FileNotFoundError, naming the script that writes it, if a file or folder is missing."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; scripts/{made_by} writes it (see docs/datasets.md)")
