"""Registration in Detectron2's catalogs that may be repeated."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json


def register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset; what an earlier call or Detectron2 registered under the name is replaced.

    Args:
        load: called when the records are asked for.
    """
    unregister(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def unregister(name: str) -> None:
    """Forget a dataset, if it is known."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def as_vocabulary(words: Iterable[Sequence[str]]) -> str:
    """The words of classes as the text that metadata takes as a vocabulary: "kite, boat: ship | vessel".

    For a dataset with a part of the classes of one of our files of words, or with more classes than it.
    """
    return ", ".join(f"{name}: {' | '.join(others)}" if others else name for name, *others in words)


def register_instances(
    name: str, listed: Path, images: Path, classes: Sequence[str], *, made_by: str, **metadata: Any
) -> None:
    """Register instances in COCO's format, whose categories are the classes, counted from 1.

    Args:
        listed: the json.
        images: the folder of the images.
        made_by: the script that makes the json.
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
    """Raise FileNotFoundError, naming the script that makes a file or folder, unless it is there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; scripts/{made_by} makes it (see docs/datasets.md)")
