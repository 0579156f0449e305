"""Other models' results into a cache, and a cache into COCO json."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from proposal_cache import rle
from proposal_cache.errors import CacheError
from proposal_cache.patches import Patches
from proposal_cache.sources import image_key
from proposal_cache.store import CacheWriter, PatchCache

_MAX_SOURCES = 256  # `Patches.source` is uint8

Descriptions = list[dict[str, Any]]
PathLike = str | os.PathLike[str]


class ExchangeError(CacheError):
    """A results file that is not what it should be; the message names it."""


def import_results(
    results: PathLike,
    annotations: PathLike,
    output: PathLike,
    dataset: str,
    *,
    labels: bool = False,
    scores: bool = True,
) -> None:
    """Makes a cache of COCO results: a list of {"image_id", "category_id", "segmentation", "score"}.

    Args:
        results: the json.
        annotations: COCO json whose `images` give each image's id, file name (hence its key) and size. Images without
            any result have no patches.
        output: directory of the cache.
        dataset: its name.
        labels: keep categories, each as a source of its own; otherwise the patches do not tell them.
        scores: keep scores, as predicted IoU.

    Raises:
        ExchangeError: naming the file and the entry.
    """
    entries = _load(results)
    if not isinstance(entries, list):
        raise ExchangeError(f"{results} is no COCO results json, which is a list; for panoptic PNGs give --panoptic")
    images = _images(annotations)
    found: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for number, entry in enumerate(entries):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(image_id, int | str) or image_id not in found or "segmentation" not in entry:
            raise ExchangeError(
                f"entry {number} of {results} has no segmentation, or its image_id {image_id!r} is not among "
                f"the images of {annotations}"
            )
        found[entry["image_id"]].append(entry)
    categories = sorted({entry.get("category_id") for entry in entries}, key=str) if labels else [None]
    sources = _sources(results, categories, _names(annotations), scores)
    with CacheWriter(output, sources, dataset) as writer:
        for image_id, (key, height, width) in images.items():
            if key in writer.done:
                continue
            some = found[image_id]
            try:
                patches = Patches.from_rles(
                    height,
                    width,
                    [_counts(entry["segmentation"], height, width) for entry in some],
                    predicted_iou=[float(entry.get("score", math.nan)) for entry in some] if scores else None,
                    source=[categories.index(entry.get("category_id")) if labels else 0 for entry in some],
                )
            except (CacheError, ValueError, TypeError, KeyError, IndexError) as error:
                raise ExchangeError(
                    f"{results} has a bad segmentation of image {image_id!r} ({key}): {error}"
                ) from error
            writer.add(key, patches.select(patches.areas > 0))


def import_panoptic(
    annotations: PathLike, png_root: PathLike, output: PathLike, dataset: str, *, labels: bool = False
) -> None:
    """Makes a cache of panoptic results: COCO's panoptic json and its folder of PNGs. Each segment is a patch.

    Args, and what is raised, are as for `import_results`.
    """
    content = _load(annotations)
    try:
        file_names = {image["id"]: image["file_name"] for image in content.get("images", ())}
        entries = [
            (
                str(file_names.get(entry["image_id"], entry["file_name"])),
                str(entry["file_name"]),
                {int(segment["id"]): segment.get("category_id") for segment in entry["segments_info"]},
            )
            for entry in content["annotations"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExchangeError(f"{annotations} is no panoptic json of COCO: {error!r}") from error
    categories = sorted({c for _, _, segments in entries for c in segments.values()}, key=str) if labels else [None]
    sources = _sources(annotations, categories, _names(annotations), scores=False)
    with CacheWriter(output, sources, dataset) as writer:
        for image_name, png_name, segments in entries:
            key = image_key(Path(png_root) / image_name, png_root)
            if key in writer.done:
                continue
            ids, rles, (height, width) = _segments(Path(png_root) / png_name)
            unknown = set(ids) - segments.keys() - {0}  # 0 is void
            if unknown:
                raise ExchangeError(f"{png_name} has segments that {annotations} does not list: {sorted(unknown)[:5]}")
            kept = [i for i, number in enumerate(ids) if number in segments]
            source = [categories.index(segments[ids[i]]) if labels else 0 for i in kept]
            writer.add(key, Patches.from_rles(height, width, [rles[i] for i in kept], source=source))


def export_results(cache: PatchCache, output: PathLike, annotations: PathLike | None = None) -> int:
    """Writes a cache as COCO results, an entry a patch, and returns how many.

    The image_id is the image's key, or, where a COCO json is given, the id it has there; only its images are written.
    The score is the predicted IoU, 1 where there is none; category_id is 1; `source` names the generator.

    Raises:
        ExchangeError: where the json cannot be read; nothing is left at `output`.
        MissingKeyError: where it lists an image that the cache has not.
    """
    ids = (
        {key: image_id for image_id, (key, _, _) in _images(annotations).items()}
        if annotations
        else {k: k for k in cache}
    )
    path, count = Path(output), 0
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w") as file:
            file.write("[")
            for entry in _entries(cache, ids):
                file.write(("," if count else "") + "\n" + json.dumps(entry))
                count += 1
            file.write("\n]\n")
        os.replace(temporary, path)
    except OSError as error:
        raise ExchangeError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _entries(cache: PatchCache, ids: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = [generator.get("name") for generator in cache.manifest.generators]
    for key, image_id in ids.items():
        patches = cache[key]
        for i, (x0, y0, x1, y1) in enumerate(patches.boxes.tolist()):
            score = float(patches.predicted_iou[i])
            yield {
                "image_id": image_id,
                "category_id": 1,
                "segmentation": {"size": [patches.height, patches.width], "counts": patches.rles[i].decode("ascii")},
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(patches.areas[i]),
                "score": 1.0 if math.isnan(score) else score,
                "source": names[patches.source[i]],
            }


def _segments(png: Path) -> tuple[list[int], list[bytes], tuple[int, int]]:
    """Ids in a panoptic PNG, their masks, and its size."""
    try:
        with Image.open(png) as image:
            pixels = np.asarray(image.convert("RGB"), np.int64)
    except (OSError, ValueError, SyntaxError) as error:
        raise ExchangeError(f"{png} cannot be read as a panoptic PNG: {error}") from error
    ids, rles = rle.encode_labels(pixels @ np.array([1, 256, 65536]))
    return ids.tolist(), rles, (pixels.shape[0], pixels.shape[1])


def _counts(segmentation: Any, height: int, width: int) -> bytes:
    """Compressed counts of a mask in any form that COCO knows: compressed, uncompressed, polygons."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, the image's [{height}, {width}]")
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):
            return counts.encode() if isinstance(counts, str) else counts
        if min(counts, default=-1) < 0 or sum(counts) != height * width:
            raise ValueError(f"its counts are not those of {height} x {width} pixels")
        return coco.frPyObjects(segmentation, height, width)["counts"]
    return coco.merge(coco.frPyObjects(segmentation, height, width))["counts"]


def _sources(file: PathLike, categories: Sequence[Any], names: Mapping[Any, str], scores: bool) -> Descriptions:
    if len(categories) > _MAX_SOURCES:
        raise ExchangeError(f"{file} has {len(categories)} categories; a cache keeps labels of {_MAX_SOURCES} at most")
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    common = {"name": "imported", "file": Path(file).name, "sha256": digest, "scores": scores}
    if list(categories) == [None]:
        return [common]
    return [{**common, "category_id": number, "category": names.get(number)} for number in categories] or [common]


def _images(annotations: PathLike) -> dict[Any, tuple[str, int, int]]:
    """Key, height and width of each image of a COCO json, by its id."""
    content = _load(annotations)
    try:
        return {
            image["id"]: (image_key(image["file_name"], "."), int(image["height"]), int(image["width"]))
            for image in content["images"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ExchangeError(
            f"{annotations} is no COCO json with images' id, file_name, height, width: {error!r}"
        ) from error


def _names(annotations: PathLike) -> dict[Any, str]:
    content = _load(annotations)
    categories: Iterable[Any] = content.get("categories", ()) if isinstance(content, dict) else ()
    return {category.get("id"): str(category.get("name")) for category in categories if isinstance(category, dict)}


def _load(path: PathLike) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ExchangeError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExchangeError(f"{path} is no json: {error}") from error
