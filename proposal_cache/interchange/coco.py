"""Import of COCO results and panoptic json files as caches, and export of caches as COCO results."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from proposal_cache import rle
from proposal_cache.errors import CacheError, abbreviate
from proposal_cache.generation.sources import image_key, open_image
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, PatchCache
from proposal_cache.store.durable import atomic_file
from proposal_cache.store.format import check_key

_MAX_SOURCES = 256  # Patches.source is uint8
_MAX_SCORE = float(np.finfo(np.float32).max)

PathLike = str | os.PathLike[str]


class InterchangeError(CacheError):
    """File to import is invalid; the message names the file and the entry."""


class _Result(NamedTuple):
    counts: bytes
    score: float  # NaN if missing
    category: int | str | None


def import_results(
    results: PathLike,
    annotations: PathLike,
    output: PathLike,
    dataset: str,
    *,
    labels: bool = False,
    scores: bool = True,
    progress: bool = False,
) -> None:
    """Import COCO results, a list of {"image_id", "category_id", "segmentation", "score"}, as a cache.

    All entries are validated before anything is written; InterchangeError is raised if a file is invalid. If
    interrupted, the same call continues.

    Args:
        annotations: COCO json whose `images` give each image's id, file name (hence its key) and size. Images without
            results get zero patches.
        labels: store each category as a separate source; otherwise categories are dropped.
        scores: store scores as predicted IoU; otherwise they are dropped.
    """
    entries, listed = _load(results), _load(annotations)
    if not isinstance(entries, list):
        raise InterchangeError(f"{results} is not COCO results, which are a list; for panoptic PNGs give --panoptic")
    images = _images(annotations, listed)
    found: dict[Any, list[_Result]] = {image_id: [] for image_id in images}
    for number, entry in enumerate(entries):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int | str) or image_id not in found or "segmentation" not in entry:
            raise InterchangeError(
                f"entry {number} of {results} has no segmentation, or its image_id {image_id!r} is not in {annotations}"
            )
        _, height, width = images[image_id]
        try:
            found[image_id].append(
                _Result(
                    rle.from_json(entry["segmentation"], height, width),
                    read_score(entry, "score") if "score" in entry else math.nan,
                    _category(entry) if labels else None,
                )
            )
        except CacheError as error:
            raise InterchangeError(f"entry {number} of {results}, of image {image_id!r}: {error}") from error
    categories = sorted({result.category for per_image in found.values() for result in per_image}, key=str)
    with CacheWriter(output, _sources(results, categories, annotations, listed, scores), dataset) as writer:
        for image_id, (key, height, width) in tqdm(images.items(), "importing", unit="image", disable=not progress):
            if key in writer.done:
                continue
            per_image = found[image_id]
            patches = Patches.from_rles(
                height,
                width,
                [result.counts for result in per_image],
                predicted_iou=[result.score for result in per_image] if scores else None,
                source=[categories.index(result.category) for result in per_image],
            )
            writer.add(key, patches.select(patches.areas > 0))


def import_panoptic(
    annotations: PathLike,
    png_root: PathLike,
    output: PathLike,
    dataset: str,
    *,
    labels: bool = False,
    progress: bool = False,
) -> None:
    """Import a COCO panoptic json as a cache, one patch per segment; `labels` and errors as in `import_results`."""
    content = _load(annotations)
    try:
        names = {image["id"]: _name(image) for image in content.get("images", ())}
        entries = [
            (
                _name(entry),
                {int(segment["id"]): _category(segment) if labels else None for segment in entry["segments_info"]},
            )
            for entry in content["annotations"]
        ]
        files = [names.get(e["image_id"], e["file_name"]) for e in content["annotations"]]
    except InterchangeError as error:
        raise InterchangeError(f"{annotations}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InterchangeError(f"{annotations} is not a COCO panoptic json: {error!r}") from error
    keys = _keys(annotations, files)
    categories = sorted({category for _, segments in entries for category in segments.values()}, key=str)
    with CacheWriter(output, _sources(annotations, categories, annotations, content, False), dataset) as writer:
        images = zip(keys, entries, strict=True)
        for key, (name, segments) in tqdm(images, "importing", len(keys), unit="image", disable=not progress):
            if key in writer.done:
                continue
            ids, rles, (height, width) = _read_segments(Path(png_root) / name)
            unknown = set(ids) - segments.keys() - {0}  # 0 is void
            if unknown:
                raise InterchangeError(f"{name} has segments that {annotations} does not list: {sorted(unknown)[:5]}")
            kept = [i for i, segment_id in enumerate(ids) if segment_id in segments]
            source = [categories.index(segments[ids[i]]) for i in kept]
            writer.add(key, Patches.from_rles(height, width, [rles[i] for i in kept], source=source))


def export_results(
    cache: PatchCache, output: PathLike, annotations: PathLike | None = None, *, progress: bool = False
) -> int:
    """Export a cache as COCO results, one entry per patch, and return their number.

    `category_id` is 1, `score` the predicted IoU (1 if there is none), `source` the generator's name. Images that
    failed during generation are skipped with a warning on stderr.

    Images of `annotations`, a COCO json, are exported under their ids; MissingKeyError is raised if one is not in the
    cache. Without annotations, all images are exported with their key as `image_id`.
    """
    ids = {key: key for key in cache}
    if annotations:
        ids = {key: i for i, (key, _, _) in _images(annotations, _load(annotations)).items()}
    count = 0
    with atomic_file(Path(output)) as file:
        file.write(b"[")
        for count, entry in enumerate(_entries(cache, ids, progress), 1):
            file.write(((",\n" if count > 1 else "\n") + json.dumps(entry)).encode())
        file.write(b"\n]\n")
    return count


def _entries(cache: PatchCache, ids: Mapping[str, Any], progress: bool) -> Iterator[dict[str, Any]]:
    names = [generator.get("name") for generator in cache.manifest.generators]
    for key, image_id in tqdm(ids.items(), "exporting", unit="image", disable=not progress):
        if key not in cache and key in cache.manifest.failures:
            tqdm.write(f"warning: skipped {key}: {cache.manifest.failures[key]}", file=sys.stderr)
            continue
        patches = cache[key]
        for i, (x0, y0, x1, y1) in enumerate(patches.boxes.tolist()):
            score = float(patches.predicted_iou[i])
            yield {
                "image_id": image_id,
                "category_id": 1,
                "segmentation": rle.to_json(patches.rles[i], patches.height, patches.width),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(patches.areas[i]),
                "score": score if math.isfinite(score) else 1.0,
                "source": names[patches.source[i]],
            }


def read_score(entry: Mapping[str, Any], name: str) -> float:
    """Return a score of an entry; raise InterchangeError if it is not a number that fits float32."""
    score = entry[name]
    if type(score) not in (int, float) or not -_MAX_SCORE <= score <= _MAX_SCORE:
        raise InterchangeError(f"{name} {abbreviate(score)} is not a finite number")
    return float(score)


def panoptic_ids(image: Image.Image) -> NDArray[np.int32]:
    """Return the segment ids (H, W) of an image in COCO's panoptic format: R + 256 G + 256² B."""
    ids: NDArray[np.int32] = np.asarray(image.convert("RGBA")).view("<i4")[..., 0] & 0xFFFFFF
    return ids


def _read_segments(png: Path) -> tuple[list[int], list[bytes], tuple[int, int]]:
    """Return the segment ids of a panoptic PNG, their masks, and the image size."""
    try:
        with open_image(str(png)) as image:
            found = panoptic_ids(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InterchangeError(f"{png} cannot be read as a panoptic PNG: {error}") from error
    ids, rles = rle.encode_labels(found)
    return ids.tolist(), rles, (found.shape[0], found.shape[1])


def _category(entry: Mapping[str, Any], name: str = "category_id") -> int | str | None:
    category = entry.get(name)
    if category is not None and not isinstance(category, int | str):
        raise InterchangeError(f"category_id {abbreviate(category)} is neither a number nor a string")
    return category


def _sources(
    file: PathLike, categories: list[Any], annotations: PathLike, content: Mapping[str, Any], scores: bool
) -> list[dict[str, Any]]:
    """Return the description of each category of a file, whose names are in the content of a COCO json.

    There is one description if labels were dropped or there are none: `categories` is [None] or empty.
    """
    if len(categories) > _MAX_SOURCES:
        raise InterchangeError(
            f"{file} has {len(categories)} categories; a cache keeps labels of {_MAX_SOURCES} at most"
        )
    listed = content.get("categories", [])
    if not isinstance(listed, list) or not all(isinstance(category, dict) for category in listed):
        raise InterchangeError(f"the categories of {annotations} are not a list of objects with id and name")
    try:
        names = {_category(category, "id"): str(category.get("name")) for category in listed}
    except InterchangeError as error:
        raise InterchangeError(f"{annotations}: {error}") from error
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    common = {"name": "imported", "file": Path(file).name, "sha256": digest, "scores": scores}
    if categories in ([], [None]):
        return [common]
    return [{**common, "category_id": number, "category": names.get(number)} for number in categories]


def _images(annotations: PathLike, content: Any) -> dict[Any, tuple[str, int, int]]:
    """Return id -> key, height and width of the images in the content of a COCO json."""
    try:
        images = [(i["id"], _name(i), int(i["height"]), int(i["width"])) for i in content["images"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InterchangeError(
            f"{annotations} is not a COCO json whose images have id, file_name, height and width: {error!r}"
        ) from error
    found: dict[Any, tuple[str, int, int]] = {}
    keys = _keys(annotations, (name for _, name, _, _ in images))
    for key, (image_id, name, height, width) in zip(keys, images, strict=True):
        if not isinstance(image_id, int | str) or image_id in found:
            raise InterchangeError(
                f"{annotations} has {name} with the id {abbreviate(image_id)}: ids must be unique numbers or strings"
            )
        if height < 1 or width < 1 or height * width > rle.MAX_PIXELS:
            raise InterchangeError(f"{annotations} has {name} with the invalid size {height} x {width}")
        found[image_id] = key, height, width
    return found


def _name(entry: Mapping[str, Any]) -> str:
    """Return the file name of an image or of its PNG."""
    if not isinstance(entry["file_name"], str):
        raise TypeError(f"file_name {abbreviate(entry['file_name'])} is not text")
    return entry["file_name"]


def _keys(annotations: PathLike, names: Iterable[str]) -> list[str]:
    keys: dict[str, None] = {}
    for name in names:
        try:
            key = image_key(name, ".")
            check_key(key)
        except CacheError as error:
            raise InterchangeError(f"{annotations} has the image {name!r}: {error}") from error
        if key in keys:
            raise InterchangeError(
                f"{annotations} has two images with the key {key!r} (the name without suffix): keys must be unique, "
                "so rename or remove one"
            )
        keys[key] = None
    return list(keys)


def _load(path: PathLike) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InterchangeError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InterchangeError(f"{path} is not valid json: {error}") from error
