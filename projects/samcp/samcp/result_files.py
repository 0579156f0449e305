"""Files of results: pictures, maps, and json in COCO's formats."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proposal_cache.generation.sources import SUFFIXES
from proposal_cache.store.format import check_key
from samcp.data.files import write_image, write_json, write_label_map, write_panoptic_ids
from samcp.evaluation.instances import to_coco_results
from samcp.vocabulary import Vocabulary

if TYPE_CHECKING:
    from samcp.result import Result

_PICTURE_QUALITY = 92
_MAX_8_BITS = 255  # maximum number of classes in an 8-bit map; 255 is unlabeled


def save_results(
    results: Iterable[tuple[str, str, "Result"]],
    folder: str | os.PathLike[str],
    task: str,
    json_name: str | None = None,
) -> list[Path]:
    """Write the files of several images, as ``samcp segment`` does.

    * KEY.jpg: the picture;
    * "panoptic": panoptic/KEY.png and panoptic.json, in COCO's panoptic format;
    * "instance": instances.json, the instances with at least the minimum score in COCO's result format;
    * "semantic": semantic/KEY.png, with 255 for unlabeled pixels (with more than 255 classes: 16 bits, 65535);
    * "instance" and "semantic": classes.json, the classes in the form of COCO's categories.

    >>> paths = save_results([("a", "a.jpg", result), ("b", "b.jpg", result)], "out", "instance")
    >>> [path.as_posix() for path in paths]
    ['out/a.jpg', 'out/b.jpg', 'out/instances.json', 'out/classes.json']

    Args:
        results: (KEY, name of the image in the json, result), all of the same classes; may be a generator, so that one
            result is in memory at a time.
        task: one of TASKS.
        json_name: other name of the json file.

    Returns:
        Paths of all files.

    Raises:
        CacheError: a KEY is not a relative path under the folder.
    """
    folder, paths, images, annotations = Path(folder), [], [], []
    categories: list[dict[str, Any]] = []
    for key, name, result in results:
        check_key(key)  # an absolute path would replace the folder
        picture = picture_path(folder, key)
        write_image(picture, np.asarray(result.draw(task)), "JPEG", quality=_PICTURE_QUALITY)
        paths.append(picture)
        height, width = result.image.shape[:2]
        images.append({"id": key, "file_name": name, "height": height, "width": width})
        categories = _categories(result.vocabulary)
        if task == "instance":
            annotations += to_coco_results(result.confident_instances, key)
            continue
        paths.append(folder / task / f"{key}.png")
        if task == "panoptic":
            annotations.append(_write_panoptic(paths[-1], result, key))
        else:
            _write_semantic(paths[-1], result)
    if images and task == "panoptic":
        paths.append(folder / (json_name or "panoptic.json"))
        write_json(paths[-1], {"images": images, "annotations": annotations, "categories": categories})
    elif images and task == "instance":
        paths.append(folder / (json_name or "instances.json"))
        write_json(paths[-1], annotations)
    if images and task != "panoptic":
        paths.append(folder / "classes.json")
        write_json(paths[-1], categories)
    return paths


def picture_path(folder: Path, key: str) -> Path:
    """Return the path of the picture of an image in the folder of :func:`save_results`."""
    return folder / f"{key}.jpg"


def without_suffix(name: str) -> str:
    """Return the name of an image without the suffix of its format.

    >>> without_suffix("pets/cat.png"), without_suffix("IMG.2024")
    ('pets/cat', 'IMG.2024')
    """
    return name.removesuffix(suffix) if (suffix := Path(name).suffix).lower() in SUFFIXES else name


def _categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    kinds = zip(vocabulary.names, vocabulary.is_thing, strict=True)
    return [{"id": i, "name": name, "isthing": int(is_thing)} for i, (name, is_thing) in enumerate(kinds)]


def _write_panoptic(path: Path, result: "Result", key: str) -> dict[str, Any]:
    """Write the map of segment ids; return the annotation of the image."""
    ids, segments = result.panoptic
    write_panoptic_ids(path, ids.numpy())
    names = ("id", "category_id", "area", "score", "part_of")
    infos = [{**{name: s[name] for name in names if name in s}, "iscrowd": 0} for s in segments]
    return {"image_id": key, "file_name": f"{key}.png", "segments_info": infos}


def _write_semantic(path: Path, result: "Result") -> None:
    depth = np.uint8 if len(result.vocabulary.names) <= _MAX_8_BITS else np.uint16
    write_label_map(path, result.semantic.numpy().astype(depth))
