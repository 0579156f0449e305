"""Reading and validation of the yaml file of a custom dataset."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samcp.data.validation.annotations import read_json
from samcp.data.validation.coco_json import shown
from samcp.errors import DataError
from samcp.vocabulary import STUFF, Vocabulary, is_path, word_key
from samcp.yaml_files import read_yaml

_TOP_KEYS = {"classes", "splits", "ignore_label"}
_NAME = re.compile(r"\w[\w.-]*")  # of a split, which also names folders of results
_SPLIT_KEYS = {"images", "labels", "instances", "panoptic", "panoptic_pngs", "patches"}


def read_vocabulary(path: Path, content: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary under `classes`.

    Raises:
        DataError: it is invalid.
    """
    source = vocabulary_source(path, content["classes"])
    try:
        return Vocabulary.read(source)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def vocabulary_source(path: Path, classes: Any) -> str | list[str]:
    """Return the argument of :meth:`Vocabulary.read`: `classes`, with the path of a file resolved against the yaml.

    Raises:
        DataError: it is neither text nor a list of texts.
    """
    if isinstance(classes, list):
        for i, item in enumerate(classes, start=1):
            if not isinstance(item, str):  # yaml parses `- kite: dragon` as a dict and `- no` as False
                raise DataError(f"{path}: classes, number {i}, is {item!r}, not text; put it in quotes")
        return classes
    if not isinstance(classes, str):
        raise DataError(f'{path}: classes is {classes!r}; write "kite, sea~", or the name of a file, or a list')
    is_file = "," not in classes and (os.path.isfile(path.parent / classes) or is_path(classes))
    return str(path.parent / classes) if is_file else classes


def check_classes(
    path: Path,
    name: str,
    listed: str,
    categories: Sequence[Mapping[str, Any]],
    things: set[int],
    content: Mapping[str, Any],
) -> None:
    """Check the `classes` of the yaml, if any, against the categories of a json.

    Args:
        path: of the yaml.
        name: of the split.
        listed: path of the json.
        categories: its categories in the order of their ids.
        things: ids of the categories that the json marks as things.
        content: of the yaml.

    Raises:
        DataError: the numbers differ, or a class marked as stuff is at the place of a thing.
    """
    if "classes" not in content:
        return
    vocabulary = read_vocabulary(path, content)
    names = [category["name"] for category in categories]
    fix = f"write them in the order of its category ids ({shown(names)}), or move this split to another yaml"
    if len(vocabulary.names) != len(names):
        raise DataError(
            f"{path}, {name}: classes has {len(vocabulary.names)}, but {listed} has {len(names)} categories; {fix}"
        )
    for word, is_thing, category in zip(vocabulary.names, vocabulary.is_thing, categories, strict=True):
        if not is_thing and category["id"] in things:
            raise DataError(
                f"{path}, {name}: classes has {word + STUFF!r}, which is stuff, at the place of category "
                f"{category['id']} {category['name']!r} of {listed}, which is a thing; {fix}"
            )


def read_description(path: Path) -> dict[str, Any]:
    """Read the yaml.

    Raises:
        DataError: it is unreadable, has no splits, or unknown keys.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise DataError(str(error)) from error
    splits = content.get("splits")
    if not isinstance(splits, dict) or not all(isinstance(split, dict) for split in splits.values()) or not splits:
        raise DataError(
            f"{path}: splits is missing; write, for example:\n"
            "splits:\n  beach_train: {images: train, labels: train_labels}"
        )
    for name in splits:
        if not _NAME.fullmatch(name):
            raise DataError(f"{path}: {name!r} cannot be the name of a split; use letters, digits, '.', '-' and '_'")
    unknown = content.keys() - _TOP_KEYS
    if unknown:
        raise DataError(
            f"{path}: unknown keys {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(_TOP_KEYS))}"
        )
    return content


def check_split(path: Path, name: str, split: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Raise DataError if a split has unknown or missing keys, or a file of it does not exist."""
    unknown = split.keys() - _SPLIT_KEYS
    if unknown:
        raise DataError(
            f"{path}, {name}: unknown keys {', '.join(sorted(unknown))}; allowed are {', '.join(sorted(_SPLIT_KEYS))}"
        )
    forms = [form for form in ("labels", "panoptic", "instances") if form in split]
    if "images" not in split or not forms or ("labels" in split and len(forms) > 1):
        raise DataError(f"{path}, {name}: needs images, and labels, or instances, or panoptic with panoptic_pngs")
    if "panoptic" in split and "panoptic_pngs" not in split:
        raise DataError(f"{path}, {name}: panoptic needs panoptic_pngs, the folder of its PNGs")
    if "labels" in split and "classes" not in content:
        raise DataError(f"{path}, {name}: labels need classes, the names of the class ids in their order")
    for key, value in split.items():
        if key != "patches" and not os.path.exists(path.parent / str(value)):
            raise DataError(f"{path}, {name}: {key} is {path.parent / str(value)}, which does not exist")
        if key in ("instances", "panoptic") and os.path.isdir(path.parent / str(value)):
            raise DataError(f"{path}, {name}: {key} is {path.parent / str(value)}, which is a folder and no json")


def read_categories(listed: Path) -> list[dict[str, Any]]:
    """Read the categories of a COCO json, in the order of their ids.

    Raises:
        DataError: the json is unreadable, has no categories, or their ids or names are missing or duplicate.
    """
    categories = read_json(listed).get("categories")
    if not isinstance(categories, list) or not all(isinstance(category, dict) for category in categories):
        categories = []
    ids, names = ([category.get(key) for category in categories] for key in ("id", "name"))
    sound = ids and all(isinstance(i, int) for i in ids) and all(isinstance(name, str) for name in names)
    if not sound or len(set(ids)) < len(ids) or len(set(map(word_key, names))) < len(names):
        raise DataError(
            f"{listed}: categories need distinct ids (integers) and distinct names (text), but the ids are {ids} and "
            f"the names {names}"
        )
    return sorted(categories, key=lambda category: category["id"])
