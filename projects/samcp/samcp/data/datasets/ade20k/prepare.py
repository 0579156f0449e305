"""Conversion of ADE20K's releases to the layout of Detectron2 (semantic) and Mask2Former (panoptic, instances).

The label maps of ADEChallengeData2016 have 1..150 for the classes and 0 for void. The instance release adds PNGs for
the 100 thing classes: red is the number of the thing class, 1..100, green the number of the instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samcp.data.datasets.ade20k.register import CLASSES, SPLITS
from samcp.data.datasets.conversion import check_count, describe_segments
from samcp.data.files import write_json, write_label_map, write_panoptic_ids
from samcp.data.ground_truth import read_label_map, read_picture
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_CLASS_OF_THING = np.flatnonzero(CLASSES.is_thing)  # the instance release numbers the things from 1
_IMAGES = {"train": 20210, "val": 2000}  # in the release
_UNKNOWN = 255
_ID_STEP = 1000  # segment id = _ID_STEP * (class + 1) + number of the instance


@dataclass(frozen=True)
class _Split:
    """Paths of the files of a split."""

    folder: Path
    name: str

    @property
    def images(self) -> list[Path]:
        return sorted((self.folder / "images" / SPLITS[self.name]).glob("*.jpg"))

    @property
    def has_instances(self) -> bool:
        return (self.folder / "annotations_instance" / SPLITS[self.name]).is_dir()

    def check_counts(self) -> None:
        """Log a warning if the numbers of images or annotations differ from the release."""
        found = {"images": len(self.images), "annotations": self._count("annotations")}
        if self.has_instances:
            found["annotations_instance"] = self._count("annotations_instance")
        for part, count in found.items():
            check_count(f"{self.folder / part / SPLITS[self.name]}, files", count, _IMAGES[self.name])

    def _count(self, release: str) -> int:
        return len(list((self.folder / release / SPLITS[self.name]).glob("*.png")))

    def annotation(self, release: str, image: Path) -> Path:
        return self.folder / release / SPLITS[self.name] / f"{image.stem}.png"

    def panoptic(self, image: Path) -> Path:
        return self.folder / f"ade20k_panoptic_{self.name}" / f"{image.stem}.png"


def prepare_ade20k(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the missing files of the layout beside those of the release.

    Layout of the folder, ADEChallengeData2016:

        images/{training,validation}/NAME.jpg                     the release
        annotations/{training,validation}/NAME.png                the release
        annotations_instance/{training,validation}/NAME.png       the instance release
        annotations_detectron2/{training,validation}/NAME.png     written: class ids 0..149, 255: void
        ade20k_panoptic_{train,val}/NAME.png, and .json           written, with the instance release
        ade20k_instance_{train,val}.json                          written, with the instance release

    Args:
        folder: ADEChallengeData2016.
        workers: number of processes.

    Returns:
        split -> number of images and available tasks; splits without images are skipped.

    Raises:
        DataError: no split has images, or an annotation is missing, unreadable or inconsistent.
    """
    done = {}
    for name in SPLITS:
        split = _Split(folder, name)
        images = split.images
        if not images:
            continue
        split.check_counts()
        parallel_map(images, partial(_write_labels, split), workers=workers, title=f"{name}, label maps")
        done[name] = f"{len(images)} images, semantic"
        if split.has_instances:
            scenes = parallel_map(images, partial(_write_panoptic, split), workers=workers, title=f"{name}, panoptic")
            _write_jsons(split, scenes)
            done[name] += ", instance and panoptic"
        else:
            done[name] += "; for instances and panoptic unpack annotations_instance.tar there, and repeat the command"
    if not done:
        raise DataError(
            f"{folder}: no images/training/*.jpg and no images/validation/*.jpg; unpack "
            "ADEChallengeData2016.zip so that this folder holds images and annotations"
        )
    return done


def _write_labels(split: _Split, image: Path) -> None:
    target = split.annotation("annotations_detectron2", image)
    if target.exists():
        return
    source = split.annotation("annotations", image)
    labels = read_label_map(str(source))
    if labels.max() > len(CLASSES.names):
        raise DataError(f"{source}: has the label {labels.max()}, but ADE20K's are 0..150; download the file again")
    write_label_map(target, (labels - 1).astype(np.uint8))  # 0, void, becomes 255


def _write_panoptic(split: _Split, image: Path) -> dict[str, Any]:
    """Write the panoptic PNG of an image; return its part of the two jsons."""
    labels = read_label_map(str(split.annotation("annotations_detectron2", image)))
    things = _read_things(split.annotation("annotations_instance", image), labels.shape)
    ids = np.where(things > 0, things, _stuff_ids(labels))
    target = split.panoptic(image)
    if not target.exists():
        write_panoptic_ids(target, ids)
    height, width = labels.shape
    return {
        "image": {"id": image.stem, "file_name": image.name, "height": height, "width": width},
        "segments": _segments(ids, with_masks=False),
        "instances": _segments(things, with_masks=True),
    }


def _stuff_ids(labels: np.ndarray) -> np.ndarray:
    """Return (H, W) segment ids of stuff, 0 elsewhere.

    Pixels of a thing without an instance, of which the release has a few, are void.
    """
    is_stuff = np.zeros(_UNKNOWN + 1, bool)
    is_stuff[: len(CLASSES.names)] = np.logical_not(CLASSES.is_thing)
    return np.where(is_stuff[labels], _ID_STEP * (labels + 1), 0)


def _read_things(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return (H, W) segment ids of instances, 0 elsewhere.

    Where an instance overlaps stuff of the label map it takes precedence, as in Mask2Former's conversion.
    """
    pixels = np.asarray(read_picture(path)).astype(np.int32)
    if pixels.shape != (*shape, 3):
        raise DataError(f"{path}: is {pixels.shape}, but its label map is {shape}; download both files again")
    things, numbers = pixels[..., 0], pixels[..., 1]
    pairs = [divmod(pair, 256) for pair in np.unique((256 * numbers + things)[numbers > 0]).tolist()]
    classes = dict(pairs)
    if len(classes) < len(pairs) or not all(1 <= thing <= len(_CLASS_OF_THING) for thing in classes.values()):
        raise DataError(
            f"{path}: an instance (green) must have one class 1..{len(_CLASS_OF_THING)} (red), but the pairs are "
            f"{pairs}; download the file again"
        )
    return np.where(numbers > 0, _ID_STEP * (_CLASS_OF_THING[things - 1] + 1) + numbers, 0)


def _segments(ids: np.ndarray, *, with_masks: bool) -> list[dict[str, Any]]:
    return [
        {"id": i, "category_id": i // _ID_STEP - 1, "iscrowd": 0, **described}
        for i, described in describe_segments(ids, with_masks=with_masks).items()
    ]


def _write_jsons(split: _Split, scenes: Sequence[dict[str, Any]]) -> None:
    categories = [
        {"id": i, "name": name, "isthing": int(thing)}
        for i, (name, thing) in enumerate(zip(CLASSES.names, CLASSES.is_thing, strict=True))
    ]
    images = [scene["image"] for scene in scenes]
    panoptic = [
        {
            "image_id": scene["image"]["id"],
            "file_name": f"{scene['image']['id']}.png",
            "segments_info": scene["segments"],
        }
        for scene in scenes
    ]
    instances = [{**i, "image_id": scene["image"]["id"]} for scene in scenes for i in scene["instances"]]
    for number, instance in enumerate(instances, start=1):
        instance["id"] = number
    things = [category for category in categories if category["isthing"]]
    for kind, annotations, listed in (("panoptic", panoptic, categories), ("instance", instances, things)):
        content = {"images": images, "annotations": annotations, "categories": listed}
        write_json(split.folder / f"ade20k_{kind}_{split.name}.json", content)
