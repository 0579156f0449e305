"""A user's own datasets, described by a small yaml file instead of Python:

    # beach.yaml; paths are relative to this file
    classes: "kite, boat: ship | vessel, sea~"   # or a file of them; names and synonyms, ~ for stuff
    splits:
      beach_train: {images: train, labels: train_labels}
      beach_val: {images: val, labels: val_labels}

A split is one registered dataset. Beside the folder of its images it has one form of ground truth:

    labels: FOLDER                        PNGs of class numbers, in the order of `classes`, named as the images;
                                          `ignore_label` (255) marks what is unknown. No instances.
    instances: FILE                       COCO's instance json. No stuff.
    panoptic: FILE, panoptic_pngs: FOLDER COCO's panoptic json and its PNGs; `instances` beside it, of the same images
                                          and things, adds AP.

For the two jsons `classes` is not needed: their categories are the classes. Given, it says by which words a text
encoder is asked for them, in the order of their ids. `patches` names the split's patch cache, for configs that name
none.

The environment variable SAMCP_REGISTER names such files, between colons, and so does --register of the commands; the
variable reaches every process that they start.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from proposal_cache.generation.sources import SUFFIXES, image_key
from samcp.data.errors import DataError
from samcp.data.json_check import compare_things, shown
from samcp.data.vocabulary import STUFF, Vocabulary, is_path, word_key

from .catalog import register

logger = logging.getLogger(__name__)

VARIABLE = "SAMCP_REGISTER"

_TOP_KEYS = {"classes", "splits", "ignore_label"}
_SPLIT_KEYS = {"images", "labels", "instances", "panoptic", "panoptic_pngs", "patches"}
_IGNORE_LABEL = 255


def register_files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Register the datasets of yaml files, here and in all processes started from here on; returns their names.

    Raises:
        DataError: a file is missing or wrong; what is wrong is named.
    """
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    added = [os.path.abspath(path) for path in paths]  # a process started from here may have another working folder
    names = [name for path in added for name in register_file(path)]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(known + added))
    return names


def register_environment() -> None:
    """Register what SAMCP_REGISTER names; what is wrong with a file is only said, as nothing may need it."""
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        try:
            register_files([path] if path else [])
        except DataError as error:
            logger.warning("%s: %s", VARIABLE, error)


def register_file(path: str | os.PathLike[str]) -> list[str]:
    """Register the splits of one yaml file; returns their names. Annotations are read when they are asked for.

    Raises:
        DataError: see `register_files`.
    """
    path = Path(path)
    content = _read(path)
    for name, split in content["splits"].items():
        if name in DatasetCatalog and MetadataCatalog.get(name).get("described_in") != str(path):
            raise DataError(f"{path}: there is already a dataset {name}; give the split another name")
        _check_split(path, name, split, content)
        files = {key: str(path.parent / str(value)) for key, value in split.items()}
        make = _panoptic if "panoptic" in split else _instances if "instances" in split else _labels
        register(name, **make(path, name, files, content))
    return list(content["splits"])


def _labels(path: Path, name: str, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    classes = _vocabulary(path, content)
    return {
        "load": partial(_load_labels, files["images"], files["labels"]),
        "evaluator_type": "sem_seg",
        "sem_seg_root": files["labels"],
        "stuff_classes": list(classes.names),
        "thing_classes": [],
        "thing_dataset_id_to_contiguous_id": {},
        **_common(path, files, content),
    }


def _instances(path: Path, name: str, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    categories = _categories(Path(files["instances"]))
    _check_classes(path, name, files["instances"], categories, {category["id"] for category in categories}, content)
    return {
        "load": partial(load_coco_json, files["instances"], files["images"], name),
        "evaluator_type": "coco",
        "json_file": files["instances"],
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
        **_common(path, files, content),
    }


def _panoptic(path: Path, name: str, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    categories = _categories(Path(files["panoptic"]))
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    things = {category["id"] for category in categories if category.get("isthing", 1)}
    names = [category["name"] for category in categories]
    said = {category["id"] for category in categories if category.get("isthing")}
    _check_classes(path, name, files["panoptic"], categories, said, content)
    if "instances" in files:
        beside = _categories(Path(files["instances"]))
        problems = compare_things(files["panoptic"], categories, files["instances"], beside)
        if problems:
            raise DataError(f"{path}, {name}: " + "\n".join(problems))
    return {
        "load": partial(_load_panoptic, files, contiguous, things),
        "evaluator_type": "coco_panoptic_seg",
        "panoptic_json": files["panoptic"],
        "panoptic_root": files["panoptic_pngs"],
        "json_file": files.get("instances"),
        "label_divisor": 1000,
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {i: c for i, c in contiguous.items() if i in things},
        "stuff_dataset_id_to_contiguous_id": {i: c for i, c in contiguous.items() if i not in things},
        **_common(path, files, content),
    }


def _common(path: Path, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "described_in": str(path),
        "image_root": files["images"],
        "ignore_label": content.get("ignore_label", _IGNORE_LABEL),
    }
    if "classes" in content:
        found["vocabulary"] = _source(path, content["classes"])
    if "patches" in files:
        found["patches"] = files["patches"]
    return found


def _load_labels(images: str, labels: str) -> list[dict[str, Any]]:
    root = Path(images)
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [
        {
            "file_name": str(file),
            "image_id": image_key(file, root),
            "sem_seg_file_name": str(Path(labels) / f"{image_key(file, root)}.png"),
        }
        for file in files
    ]


def _load_panoptic(files: Mapping[str, str], contiguous: Mapping[int, int], things: set[int]) -> list[dict[str, Any]]:
    """Detectron2's loader wants numbers as ids, and a PNG to be called as its image; here neither need be so."""
    listed = files["panoptic"]
    content = _read_json(Path(listed))
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise DataError(f"{listed}: it annotates image {annotation['image_id']!r}, which is not in its images")
        unknown = {segment["category_id"] for segment in annotation["segments_info"]} - contiguous.keys()
        if unknown:
            raise DataError(
                f"{listed}: {annotation['file_name']} has segments of category {sorted(unknown)}, which is not in its "
                "categories"
            )
        records.append(
            {
                "file_name": os.path.join(files["images"], image["file_name"]),
                "image_id": annotation["image_id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": os.path.join(files["panoptic_pngs"], annotation["file_name"]),
                "segments_info": [
                    {**s, "category_id": contiguous[s["category_id"]], "isthing": s["category_id"] in things}
                    for s in annotation["segments_info"]
                ],
            }
        )
    return records


def _vocabulary(path: Path, content: Mapping[str, Any]) -> Vocabulary:
    """The words that the yaml gives its classes."""
    try:
        return Vocabulary.read(_source(path, content["classes"]))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _source(path: Path, classes: Any) -> str | list[str]:
    """What `Vocabulary.read` takes: a file's name relative to the yaml becomes absolute, all else stays as it is.

    Raises:
        DataError: neither text nor a list of texts.
    """
    if isinstance(classes, list):
        for i, item in enumerate(classes, start=1):
            if not isinstance(item, str):  # such as - kite: dragon, or - no
                raise DataError(f"{path}: classes, number {i}, is no text but {item!r}; put it between quotes")
        return classes
    if not isinstance(classes, str):
        raise DataError(f'{path}: classes is {classes!r}; write "kite, sea~", or the name of a file, or a list')
    is_file = "," not in classes and (os.path.isfile(path.parent / classes) or is_path(classes))
    return str(path.parent / classes) if is_file else classes


def _check_classes(
    path: Path,
    name: str,
    listed: str,
    categories: Sequence[Mapping[str, Any]],
    things: set[int],
    content: Mapping[str, Any],
) -> None:
    """Refuse classes that cannot be those of a json, if there are any in the yaml.

    Args:
        listed: the json.
        categories: its categories in the order of the classes.
        things: the ids of those that are things for sure.

    Raises:
        DataError: not as many classes, or one marked as stuff in the place of a thing.
    """
    if "classes" not in content:
        return
    vocabulary = _vocabulary(path, content)
    names = [category["name"] for category in categories]
    way_out = f"write them in the order of its categories' ids ({shown(names)}), or this split in a yaml of its own"
    if len(vocabulary.names) != len(names):
        raise DataError(
            f"{path}, {name}: classes has {len(vocabulary.names)}, but {listed} has {len(names)} categories; {way_out}"
        )
    for word, is_thing, category in zip(vocabulary.names, vocabulary.is_thing, categories, strict=True):
        if not is_thing and category["id"] in things:
            raise DataError(
                f"{path}, {name}: classes has {word + STUFF!r}, which is stuff, in the place of category "
                f"{category['id']} {category['name']!r} of {listed}, which is a thing; {way_out}"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: the description of a dataset cannot be read ({error})") from error
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, dict) or not all(isinstance(split, dict) for split in splits.values()) or not splits:
        raise DataError(
            f"{path}: needs splits, such as\nsplits:\n  beach_train: {{images: train, labels: train_labels}}"
        )
    unknown = content.keys() - _TOP_KEYS
    if unknown:
        raise DataError(f"{path}: {', '.join(sorted(unknown))} is not known; known are {', '.join(sorted(_TOP_KEYS))}")
    return content


def _check_split(path: Path, name: str, split: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    unknown = split.keys() - _SPLIT_KEYS
    if unknown:
        raise DataError(
            f"{path}, {name}: {', '.join(sorted(unknown))} is not known; known are {', '.join(sorted(_SPLIT_KEYS))}"
        )
    forms = [form for form in ("labels", "panoptic", "instances") if form in split]
    if "images" not in split or not forms or ("labels" in split and len(forms) > 1):
        raise DataError(f"{path}, {name}: needs images, and labels, or instances, or panoptic with panoptic_pngs")
    if "panoptic" in split and "panoptic_pngs" not in split:
        raise DataError(f"{path}, {name}: panoptic needs panoptic_pngs, the folder of its PNGs, beside it")
    if "labels" in split and "classes" not in content:
        raise DataError(f"{path}, {name}: labels are numbers; classes must say, in their order, what they mean")
    for key, value in split.items():
        if key != "patches" and not (path.parent / str(value)).exists():
            raise DataError(f"{path}, {name}: {key} is {path.parent / str(value)}, which is not there")


def _categories(listed: Path) -> list[dict[str, Any]]:
    """The categories of a COCO json, in the order of their ids.

    Raises:
        DataError: unreadable, none, one without id or name, or two with the same.
    """
    categories = _read_json(listed).get("categories")
    if not isinstance(categories, list) or not all(isinstance(category, dict) for category in categories):
        categories = []
    ids, names = ([category.get(key) for category in categories] for key in ("id", "name"))
    sound = ids and all(isinstance(i, int) for i in ids) and all(isinstance(name, str) for name in names)
    if not sound or len(set(ids)) < len(ids) or len(set(map(word_key, names))) < len(names):
        raise DataError(
            f"{listed}: needs categories, each with an id and a name of its own, a number and a text; it has {ids} "
            f"{names}"
        )
    return sorted(categories, key=lambda category: category["id"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no COCO json, which is an object with images, annotations and categories")
    return content
