"""Registration in Detectron2's catalogs that may be repeated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


def register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset; what an earlier call or Detectron2 registered under the name is replaced.

    Args:
        load: called when the records are asked for.
    """
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def need(path: Path, made_by: str) -> None:
    """Raise FileNotFoundError, naming the script that makes a file or folder, unless it is there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; scripts/{made_by} makes it (see docs/datasets.md)")
