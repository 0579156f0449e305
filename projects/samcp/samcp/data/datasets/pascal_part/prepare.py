"""Conversion of Pascal-Part's .mat annotations to COCO instance jsons of 93 part classes, and of parts and 20 objects.

The release distinguishes several hundred parts: left and right, upper and lower, numbered. They are merged to the 93
classes of VLPart (Sun et al., 2023), which the paper uses with the same 4465 validation images (4.5). For example, a
bicycle's chain wheel is a wheel, and the upper and the lower part of a leg are two instances of leg.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from samcp.data.datasets.conversion import check_count, convert_and_keep, describe_segments, lists_images, need_images
from samcp.data.datasets.pascal_part.register import OBJECTS
from samcp.data.files import write_json
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

_PARTS = Vocabulary.load("pascal_part").names
_ANNOTATED = {"train": 4998, "val": 5105}  # images of VOC 2010, all in the release
_VAL_WITH_PARTS = 4465  # paper, 4.5
# Word of the vocabulary -> abbreviation in the release.
_ABBREVIATIONS = {"license plate": "liplate", "paw": "pa"}


def prepare_pascal_part(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the jsons beside the release; skip a split if its json lists exactly the images of VOC.

    Layout of the folder:

        Annotations_Part/NAME.mat                               the release
        VOCdevkit/VOC2010/{JPEGImages,ImageSets/Main}/          of Pascal VOC 2010
        {train,val}.json                                        written: the parts
        {train,val}_general.json                                written: the parts, then the objects as further classes
        {train,val}_converted/NAME.json                         written, and removed after the jsons

    Args:
        folder: holds Annotations_Part and VOCdevkit.
        workers: number of processes.

    Returns:
        split -> numbers of images with parts and of all images.

    Raises:
        DataError: a list of VOC, an image or an annotation is missing or unreadable.
    """
    return {split: _prepare_split(folder, split, workers) for split in _ANNOTATED}


def _prepare_split(folder: Path, split: str, workers: int) -> str:
    parts_json, general_json = folder / f"{split}.json", folder / f"{split}_general.json"
    kept = folder / f"{split}_converted"
    voc = folder / "VOCdevkit" / "VOC2010"
    listed = voc / "ImageSets" / "Main" / f"{split}.txt"
    try:
        names = listed.read_text().split()
    except OSError as error:
        raise DataError(
            f"{listed}: cannot be read ({error}); unpack VOCtrainval_03-May-2010.tar so that {folder} holds VOCdevkit, "
            "beside Annotations_Part of Pascal-Part's trainval.tar.gz"
        ) from error
    check_count(f"{listed}, images", len(names), _ANNOTATED[split])
    if parts_json.exists() and lists_images(general_json, names):
        return "done before"
    images = [voc / "JPEGImages" / f"{name}.jpg" for name in names]
    need_images(images, f"unpack VOCtrainval_03-May-2010.tar again so that {voc} holds JPEGImages")
    convert = partial(_read_image, folder / "Annotations_Part")
    scenes = convert_and_keep(names, convert, kept, workers=workers, title=split)
    with_parts = _write(parts_json, [scene for scene in scenes if _of_first(scene, len(_PARTS))], _PARTS)
    general = _write(general_json, scenes, (*_PARTS, *OBJECTS))  # written last: it lists all images
    shutil.rmtree(kept, ignore_errors=True)
    if split == "val":
        check_count(f"{parts_json}, images with parts", with_parts, _VAL_WITH_PARTS)
    return f"{with_parts} images with parts, {general} in all"


def _read_image(annotations: Path, name: str) -> dict[str, Any]:
    """Return COCO's entries of an image and of its parts and objects."""
    path = annotations / f"{name}.mat"
    try:
        objects = loadmat(path)["anno"][0, 0]["objects"][0]
        found = [segment for thing in objects for segment in _segments(thing)]
        height, width = objects[0]["mask"].shape
    except Exception as error:  # SciPy raises many types for damaged files
        raise DataError(
            f"{path}: cannot be read as an annotation of Pascal-Part ({error}); download it again"
        ) from error
    image_id = int(name.replace("_", ""))
    return {
        "image": {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width},
        "annotations": [{**segment, "image_id": image_id, "iscrowd": 0} for segment in found],
    }


def _segments(thing: np.void) -> list[dict[str, Any]]:
    """Return COCO's entries of an object and its parts."""
    kind = int(thing["class_ind"].item())
    found = [(len(_PARTS) + kind, thing["mask"])]
    for part in thing["parts"].ravel():
        category = part_category(kind, str(part["part_name"][0]))
        if category is not None:
            found.append((category, part["mask"]))
    # The mask of a fully hidden object or part is empty.
    return [{"category_id": category, **_describe(mask)} for category, mask in found if mask.any()]


def _describe(mask: np.ndarray) -> dict[str, Any]:
    return describe_segments((mask > 0).astype(np.int32), with_masks=True)[1]


def part_category(kind: int, part: str) -> int | None:
    """Return the class 1..93 of a part of the release, None if it has none, such as an aeroplane's engine.

    Args:
        kind: class of the object, 1..20 in the order of Pascal VOC.
        part: name in the release, such as "lfuleg", the left front upper leg, or "wheel_2".
    """
    name = part.rstrip("_0123456789")
    return next((category for ending, category in _ENDINGS[kind].items() if name.endswith(ending)), None)


def _endings() -> dict[int, dict[str, int]]:
    """Return, for each object class, the ending of a part's name in the release -> the part's class."""
    endings: dict[int, dict[str, int]] = {kind: {} for kind in range(1, len(OBJECTS) + 1)}
    for category, name in enumerate(_PARTS, start=1):
        word, _, part = name.partition(" ")
        kind = 1 + OBJECTS.index("potted plant" if word == "plant" else word)
        endings[kind][_ABBREVIATIONS.get(part, part or word)] = category
    return endings


_ENDINGS = _endings()


def _of_first(scene: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Select the annotations of an image with the first `count` classes."""
    return [annotation for annotation in scene["annotations"] if annotation["category_id"] <= count]


def _write(path: Path, scenes: list[dict[str, Any]], names: tuple[str, ...]) -> int:
    """Write images and their annotations with the first classes; return the number of images."""
    wanted = [annotation for scene in scenes for annotation in _of_first(scene, len(names))]
    annotations = [{**annotation, "id": i} for i, annotation in enumerate(wanted, start=1)]
    images = [scene["image"] for scene in scenes]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return len(images)
