"""Import of SA-1B's masks, one json file per image, as a cache."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from proposal_cache import rle
from proposal_cache.errors import CacheError, StorageError, abbreviate
from proposal_cache.generation.sources import SourceError, image_key, read_file
from proposal_cache.generation.streams import TarShard, find_sources
from proposal_cache.interchange.coco import InterchangeError, read_score
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter
from proposal_cache.store.format import check_key

_DESCRIPTION = {"name": "sa1b", "release": "Segment Anything 1 Billion"}


def import_sa1b(
    location: str | os.PathLike[str], output: str | os.PathLike[str], dataset: str, *, progress: bool = False
) -> None:
    """Import the masks of SA-1B with their predicted IoU and stability score.

    The key of an image is the path of its json without suffix, below the folder or in the tar file: `sa_223750`. A json
    that is invalid or cannot be read is reported on stderr and recorded as a failure. If interrupted, the same call
    continues.

    Raises SourceError at the end, when all others are imported, if a tar file, or the name of a member, is damaged.

    `location` is a folder of json files, searched with its subfolders; or path or URL of the released tar files, in
    which `{000000..000999}` and `*` name several.
    """
    damaged: list[SourceError] = []
    files = _find_json_files(str(location), damaged)
    with CacheWriter(output, _DESCRIPTION, dataset) as writer:
        for key, read in tqdm(files, "importing", unit="image", disable=not progress):
            if key in writer.done:
                continue
            try:
                writer.add(key, read_sa1b(read()))
            except StorageError:
                raise
            except CacheError as error:
                tqdm.write(f"warning: skipped: {key}: {error}", file=sys.stderr)
                writer.add_failure(key, str(error))
    if damaged:
        raise SourceError(
            f"{len(damaged)} tar files or members were not read, the first one: {damaged[0]}; replace them and repeat "
            "the command"
        )


def read_sa1b(content: bytes) -> Patches:
    """Return the patches of one image of SA-1B; empty masks are dropped. Raises InterchangeError if one is invalid.

    The json has `image` {"height", "width", ...} and `annotations`, a list of {"segmentation": COCO RLE,
    "predicted_iou", "stability_score", ...}.
    """
    try:
        parsed = json.loads(content)
        height, width = (parsed["image"][name] for name in ("height", "width"))
        if type(height) is not int or type(width) is not int or not 0 < height * width <= rle.MAX_PIXELS:
            raise InterchangeError(f"image size {abbreviate(height)} x {abbreviate(width)} is invalid")
        masks = parsed["annotations"]
        patches = Patches.from_rles(
            height,
            width,
            [rle.from_json(mask["segmentation"], height, width) for mask in masks],
            predicted_iou=[read_score(mask, "predicted_iou") for mask in masks],
            stability_score=[read_score(mask, "stability_score") for mask in masks],
        )
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        reason = str(error) if isinstance(error, CacheError) else repr(error)
        raise InterchangeError(f"not a json of SA-1B: {reason}") from error
    return patches.select(patches.areas > 0)


def _find_json_files(location: str, damaged: list[SourceError]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Return an iterator over each json file of a folder or of tar files: its key, and a function that reads it.

    Errors of tar files are added to `damaged`.
    """
    root = Path(location)
    if root.is_dir():
        paths = sorted(path for path in root.rglob("*.json") if not path.is_dir())
        if not paths:
            raise SourceError(f"no json files in {location}")
        return ((image_key(path, root), partial(read_file, str(path))) for path in paths)
    shards = [shard for shard in find_sources(location) if isinstance(shard, TarShard)]
    if not shards:
        raise SourceError(f"{location} is neither a folder nor tar files")
    return _members(shards, damaged)


def _members(shards: list[TarShard], damaged: list[SourceError]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for shard in shards:
        try:
            for key, _, content in shard.members({".json"}):
                try:
                    check_key(key)
                except CacheError as error:
                    _report(SourceError(f"{shard.url}: {error}"), damaged)
                else:
                    yield key, partial(bytes, content)
        except SourceError as error:
            _report(error, damaged)


def _report(error: SourceError, damaged: list[SourceError]) -> None:
    tqdm.write(f"warning: {error}", file=sys.stderr)
    damaged.append(error)
