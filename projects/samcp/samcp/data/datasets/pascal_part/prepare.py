"""Pascal-Part's .mat annotations as COCO instance jsons: 93 kinds of parts, alone or with the 20 kinds of objects.

The release names several hundred parts, left and right, upper and lower apart and numbered. Those that are one part in
words are one class here, by the rule of VLPart (Sun et al., 2023), whose 93 classes and 4465 validation images are the
paper's (4.5). By it a bicycle's chain wheel is a wheel, and an upper and a lower leg are two legs.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from samcp.data.datasets.conversion import check_count, convert_and_keep, describe_segments, lists_images, need_images
from samcp.data.datasets.pascal_part.register import OBJECTS
from samcp.data.files import write_json
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary

_PARTS = Vocabulary.load("pascal_part").names
_ANNOTATED = {"train": 4998, "val": 5105}  # images of VOC 2010, all of which the release has
_VAL_WITH_PARTS = 4465  # paper, 4.5
# The release's abbreviations of what the vocabulary spells out.
_ABBREVIATIONS = {"license plate": "liplate", "paw": "pa"}


def prepare_pascal_part(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the jsons beside the release; a split whose jsons are of the images that VOC lists is left as it is.

    Layout of the folder:

        Annotations_Part/NAME.mat                               the release
        VOCdevkit/VOC2010/{JPEGImages,ImageSets/Main}/          of Pascal VOC 2010
        {train,val}.json                                        written: the parts
        {train,val}_general.json                                written: the parts, and the objects as further classes
        {train,val}_converted/NAME.json                         written, and gone once the jsons are there

    Args:
        workers: processes.

    Returns:
        split -> what was found in it.

    Raises:
        DataError: a list of VOC or an image is not there, or an annotation is missing or unreadable.
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
    need_images(images, f"unpack VOCtrainval_03-May-2010.tar anew so that {voc} holds JPEGImages")
    convert = partial(_read_image, folder / "Annotations_Part")
    scenes = convert_and_keep(names, convert, kept, workers=workers, title=split)
    with_parts = _write(parts_json, [scene for scene in scenes if _of_first(scene, len(_PARTS))], _PARTS)
    general = _write(general_json, scenes, (*_PARTS, *OBJECTS))  # lists all images, by which it is known to be whole
    shutil.rmtree(kept, ignore_errors=True)
    if split == "val":
        check_count(f"{parts_json}, images with parts", with_parts, _VAL_WITH_PARTS)
    return f"{with_parts} images with parts, {general} in all"


def _read_image(annotations: Path, name: str) -> dict[str, Any]:
    """The image and its annotations, objects too, for COCO's json."""
    path = annotations / f"{name}.mat"
    try:
        objects = loadmat(path)["anno"][0, 0]["objects"][0]
        found = [segment for thing in objects for segment in _segments(thing)]
        height, width = objects[0]["mask"].shape
    except (OSError, MatReadError, KeyError, IndexError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an annotation of Pascal-Part ({error}); take it anew") from error
    image_id = int(name.replace("_", ""))
    return {
        "image": {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width},
        "annotations": [{**segment, "image_id": image_id, "iscrowd": 0} for segment in found],
    }


def _segments(thing: np.void) -> list[dict[str, Any]]:
    """An object of the release and its parts, as COCO describes them."""
    kind = int(thing["class_ind"].item())
    found = [(len(_PARTS) + kind, thing["mask"])]
    for part in thing["parts"].ravel():
        category = part_category(kind, str(part["part_name"][0]))
        if category is not None:
            found.append((category, part["mask"]))
    # Of something that is hidden altogether the mask is empty.
    return [{"category_id": category, **_describe(mask)} for category, mask in found if mask.any()]


def _describe(mask: np.ndarray) -> dict[str, Any]:
    return describe_segments((mask > 0).astype(np.int32), with_masks=True)[1]


def part_category(kind: int, part: str) -> int | None:
    """Which of the parts 1..93 a part of the release is; None if none, as an aeroplane's engine.

    Args:
        kind: of the object, 1..20 in the order of Pascal VOC.
        part: in the release's words, such as "lfuleg", the left front upper leg, or "wheel_2".
    """
    name = part.rstrip("_0123456789")
    return next((category for ending, category in _ENDINGS[kind].items() if name.endswith(ending)), None)


def _endings() -> dict[int, dict[str, int]]:
    """For each kind of object: how the release's names of a part end -> the part's category."""
    endings: dict[int, dict[str, int]] = {kind: {} for kind in range(1, len(OBJECTS) + 1)}
    for category, name in enumerate(_PARTS, start=1):
        word, _, part = name.partition(" ")
        kind = 1 + OBJECTS.index("potted plant" if word == "plant" else word)
        endings[kind][_ABBREVIATIONS.get(part, part or word)] = category
    return endings


_ENDINGS = _endings()


def _of_first(scene: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The annotations of an image that are of the first `count` classes."""
    return [annotation for annotation in scene["annotations"] if annotation["category_id"] <= count]


def _write(path: Path, scenes: list[dict[str, Any]], names: tuple[str, ...]) -> int:
    """Write images, and what they have of the first classes; returns how many images there are."""
    wanted = [annotation for scene in scenes for annotation in _of_first(scene, len(names))]
    annotations = [{**annotation, "id": i} for i, annotation in enumerate(wanted, start=1)]
    images = [scene["image"] for scene in scenes]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
    return len(images)
