"""What every conversion of a release does: go through many images, keep what is there, write what is missing whole."""

import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from tqdm import tqdm

from proposal_cache import Patches
from proposal_cache.generation.engines.local import process_pool
from proposal_cache.rle import encode_labels
from samcp.data.errors import DataError

logger = logging.getLogger(__name__)

Source = TypeVar("Source")
Result = TypeVar("Result")


def convert_all(
    sources: Sequence[Source], convert: Callable[[Source], Result], *, workers: int, title: str
) -> list[Result]:
    """Apply a function to every source, in order, under a bar of progress.

    Args:
        convert: with several workers, something that pickles.
        workers: processes.
        title: of the bar.
    """
    progress = {"total": len(sources), "desc": title, "unit": "image", "mininterval": 1}
    if workers == 1:
        return list(tqdm(map(convert, sources), **progress))
    with process_pool(workers, _start_worker, (convert,)) as pool:
        return list(tqdm(pool.map(_convert_in_worker, sources, chunksize=8), **progress))


_convert: Callable[[Any], Any]  # of a worker process, which gets it once: with it may come a patch cache to open


def _start_worker(convert: Callable[[Any], Any]) -> None:
    global _convert
    _convert = convert


def _convert_in_worker(source: Any) -> Any:
    return _convert(source)


def convert_and_keep(
    names: Sequence[str], convert: Callable[[str], Any], kept: Path, *, workers: int, title: str
) -> list[Any]:
    """:func:`convert_all` for results that go into one json: each is kept, so that an interrupted run continues.

    Args:
        names: of the images.
        convert: a name -> what json can hold; with several workers, something that pickles.
        kept: the folder of the results, NAME.json; to be removed by the caller once their json is written.
    """
    return convert_all(names, partial(_convert_once, convert, kept), workers=workers, title=title)


def _convert_once(convert: Callable[[str], Any], kept: Path, name: str) -> Any:
    path = kept / f"{name}.json"
    with suppress(FileNotFoundError, ValueError):  # a damaged one is made anew
        return json.loads(path.read_text())
    result = convert(name)
    write_json(path, result)
    return result


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under, which becomes ``path`` if the block ends well: what has its name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a json file whole."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write (H, W) uint8 or uint16 class ids as a PNG of one channel."""
    with replacing(path) as temporary:
        Image.fromarray(labels).save(temporary, format="PNG")


def write_panoptic_ids(path: Path, ids: np.ndarray) -> None:
    """Write (H, W) segment ids below 2^24, 0 for void, as COCO's panoptic PNG."""
    with replacing(path) as temporary:
        Image.fromarray(id2rgb(ids)).save(temporary, format="PNG")


def describe_segments(ids: np.ndarray, *, with_masks: bool) -> dict[int, dict[str, Any]]:
    """What COCO's jsons say of every segment of (H, W) ids.

    Returns:
        id, without 0 -> "area" in pixels, "bbox" as XYWH, and with masks "segmentation", a compressed RLE.
    """
    height, width = ids.shape
    found, rles = encode_labels(ids)
    masks = Patches.from_rles(height, width, rles)
    described: dict[int, dict[str, Any]] = {}
    for i, rle, area, (x0, y0, x1, y1) in zip(found, rles, masks.areas, masks.boxes, strict=True):
        described[int(i)] = {"area": int(area), "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)]}
        if with_masks:
            described[int(i)]["segmentation"] = {"size": [height, width], "counts": rle.decode("ascii")}
    described.pop(0, None)
    return described


def lists_images(path: Path, names: Collection[str]) -> bool:
    """Whether a json in COCO's format is there, and lists the images NAME.jpg and no others."""
    try:
        images = json.loads(path.read_text())["images"]
    except (FileNotFoundError, ValueError):
        return False
    return {image["file_name"] for image in images} == {f"{name}.jpg" for name in names}


def need_images(paths: Sequence[Path], way_out: str) -> None:
    """Raise DataError, naming the first that is missing, unless all images are there."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{missing[0]}: is missing, one of {len(missing)} such images of {len(paths)}; {way_out}")


def check_count(what: str, found: int, expected: int) -> None:
    """Warn where a release is not there as a whole."""
    if found != expected:
        logger.warning("%s: found %d, the whole release has %d", what, found, expected)
