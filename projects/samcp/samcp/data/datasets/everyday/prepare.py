"""Photographs with objects of one class, "object", from COCO, BSDS500 and CCP, to learn Prompt II without names.

Layout under DETECTRON2_DATASETS, beside coco, bsds500 and ccp:

    everyday/
      objects.yaml                     registers everyday_{train,things_train,composed_train,objects_val}
      {train,things,composed,val}.json objects as COCO instances of the class "object"; things has those of COCO and
                                       whole persons only, val is of COCO only
      composed/NUMBER.jpg              COCO's images with pasted objects and persons; composed.json has the things of
                                       these and of COCO's images as they are
      named.yaml                       registers everyday_named_train and everyday_val
      train_panoptic.json              COCO's annotations of its part of the images
      val_{panoptic,instances}.json    COCO's annotations of the validation images
      words.yaml                       registers everyday_words_{train,val}
      words_{train,val}.json, words/   regions of BSDS500 and COCO with words, to learn these
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samcp.data.datasets.conversion import describe_segments
from samcp.data.datasets.everyday.compose import Composer, Source
from samcp.data.datasets.everyday.named_regions import read_segmentation, write_named_regions
from samcp.data.files import write_bytes, write_json
from samcp.data.ground_truth import read_label_map, read_panoptic_ids
from samcp.data.parallel import parallel_map
from samcp.errors import DataError

_VAL_EVERY = 5  # every fifth COCO image, in the order of ids, is for validation
_GARMENTS_EVERY, _PERSONS_EVERY = 4, 8  # CCP has more images than the others together, all of one kind
_CUTOUTS_EVERY = 2  # of CCP's images
_COMPOSED = 800
_MIN_SHARE = 0.001  # of the image; smaller objects are skipped
_YAMLS = {
    "objects": """\
splits:
  everyday_train: {images: .., instances: train.json, patches: patches/train}
  everyday_things_train: {images: .., instances: things.json, patches: patches/train}
  everyday_composed_train: {images: .., instances: composed.json, patches: patches/composed}
  everyday_objects_val: {images: ../coco/train2017, instances: val.json, patches: patches/val}
""",
    "named": """\
classes: coco
splits:
  everyday_named_train:
    images: ../coco/train2017
    panoptic: train_panoptic.json
    panoptic_pngs: ../coco/panoptic_train2017
  everyday_val:
    images: ../coco/train2017
    panoptic: val_panoptic.json
    panoptic_pngs: ../coco/panoptic_train2017
    instances: val_instances.json
    patches: patches/val
""",
    "words": """\
splits:
  everyday_words_train: {images: .., panoptic: words_train.json, panoptic_pngs: words}
  everyday_words_val: {images: .., panoptic: words_val.json, panoptic_pngs: words}
""",
}


# COCO's entries of an image and of its objects.
_Entries = tuple[dict[str, Any], list[dict[str, Any]]]


def prepare_everyday(folder: Path, *, workers: int = 1) -> dict[str, str]:
    """Write the json files and the yaml that registers them.

    Args:
        folder: `everyday`, beside the folders of the three datasets.
        workers: number of processes.

    Returns:
        split -> numbers of images and objects or regions.

    Raises:
        DataError: a dataset is missing, or one of its files is unreadable.
    """
    base = folder.parent
    panoptic = _read(base / "coco" / "annotations" / "panoptic_train2017.json")
    instances = _read(base / "coco" / "annotations" / "instances_train2017.json")
    ids = sorted(image["id"] for image in panoptic["images"])
    val = set(ids[_VAL_EVERY - 1 :: _VAL_EVERY])
    parts = {"train": _part(panoptic, set(ids) - val), "val": _part(panoptic, val)}
    for split, part in parts.items():
        write_json(folder / f"{split}_panoptic.json", part)
    write_json(folder / "val_instances.json", _part(instances, val))

    coco = {split: list(_coco(base / "coco", part)) for split, part in parts.items()}
    garments = list(_ccp(base / "ccp", _GARMENTS_EVERY, _read_garments))
    objects = {
        "train": (base, [*coco["train"], *_bsds500(base / "bsds500"), *garments]),
        "things": (base, [*coco["train"], *_ccp(base / "ccp", _PERSONS_EVERY, _read_person)]),
        "val": (base / "coco" / "train2017", coco["val"]),
    }
    found = {split: _write_objects(folder, split, *objects[split], workers=workers) for split in objects}
    found["composed"] = _write_composed(folder, parts["train"], workers=workers)
    found |= write_named_regions(folder)
    for name, text in _YAMLS.items():
        write_bytes(folder / f"{name}.yaml", text.encode())
    return found


def _write_objects(folder: Path, split: str, root: Path, sources: Sequence[Source], *, workers: int) -> str:
    """Write the objects of some images as COCO instances; `root` is the folder of the images."""
    return _write(folder, split, parallel_map(sources, partial(_describe, root), workers=workers, title=split))


def _write_composed(folder: Path, panoptic: dict[str, Any], *, workers: int) -> str:
    """Write images of COCO with pasted things and persons, and the things of these and of the images themselves."""
    base = folder.parent
    things = list(_coco(base / "coco", panoptic, things_only=True))
    composer = Composer(things, list(_ccp(base / "ccp", _CUTOUTS_EVERY, _read_person)), folder / "composed")
    found = parallel_map(things, partial(_describe, base), workers=workers, title="things of COCO")
    found += parallel_map(range(_COMPOSED), partial(_compose, base, composer), workers=workers, title="composed")
    return _write(folder, "composed", found)


def _compose(root: Path, composer: Composer, index: int) -> _Entries:
    image, objects = composer(index)
    return _describe(root, (image, lambda: [objects]))


def _write(folder: Path, split: str, found: Sequence[_Entries]) -> str:
    images = [{"id": i, **image} for i, (image, _) in enumerate(found, start=1)]
    objects = [{**o, "image_id": i} for i, (_, objects) in enumerate(found, start=1) for o in objects]
    content = {
        "images": images,
        "annotations": [{"id": i, **o} for i, o in enumerate(objects, start=1)],
        "categories": [{"id": 1, "name": "object"}],
    }
    write_json(folder / f"{split}.json", content)
    return f"{len(images)} images, {len(objects)} objects"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download COCO's annotations again") from error
    return content


def _part(content: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """Return the part of a COCO json for some images."""
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }


def _coco(folder: Path, panoptic: dict[str, Any], *, things_only: bool = False) -> Iterator[Source]:
    """Yield things and, as BSDS500 does not distinguish them, stuff."""
    skipped = {c["id"] for c in panoptic["categories"] if things_only and not c["isthing"]}
    names = {image["id"]: image["file_name"] for image in panoptic["images"]}
    for annotation in panoptic["annotations"]:
        segments = annotation["segments_info"]
        ignored = [s["id"] for s in segments if s["iscrowd"] or s["category_id"] in skipped]
        file = folder / "panoptic_train2017" / annotation["file_name"]
        yield folder / "train2017" / names[annotation["image_id"]], partial(_read_segments, file, ignored)


def _read_segments(file: Path, ignored: list[int]) -> list[np.ndarray]:
    ids = read_panoptic_ids(str(file))
    return [np.where(np.isin(ids, ignored), 0, ids)]


def _bsds500(folder: Path) -> Iterator[Source]:
    for image in _images(folder):
        yield image, partial(_read_regions, folder, image.stem)


def _read_regions(folder: Path, name: str) -> list[np.ndarray]:
    return [read_segmentation(folder, "train", name)]


def _ccp(folder: Path, every: int, read: Callable[[Path], list[np.ndarray]]) -> Iterator[Source]:
    for image in _images(folder)[::every]:
        yield image, partial(read, folder / "annotations" / "train" / f"{image.stem}.png")


def _read_garments(file: Path) -> list[np.ndarray]:
    """Return the garments, and the whole person."""
    labels = read_label_map(str(file))
    return [labels, (labels > 0).astype(np.int32)]


def _read_person(file: Path) -> list[np.ndarray]:
    return _read_garments(file)[1:]


def _images(folder: Path) -> list[Path]:
    images = sorted((folder / "images" / "train").glob("*.jpg"))
    if not images:
        raise DataError(f"{folder / 'images' / 'train'}: no images; see docs/datasets.md")
    return images


def _describe(root: Path, source: Source) -> _Entries:
    image, read_objects = source
    maps = read_objects()
    height, width = maps[0].shape
    objects = [o for ids in maps for o in describe_segments(ids, with_masks=True).values()]
    large = [o for o in objects if o["area"] >= _MIN_SHARE * height * width]
    return (
        {"file_name": str(image.relative_to(root)), "height": height, "width": width},
        [{**o, "category_id": 1, "iscrowd": 0} for o in large],
    )
