"""Reading and checking of the yaml file that describes a user's datasets."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from samcp.data.validation.coco_json import shown
from samcp.errors import DataError
from samcp.vocabulary import STUFF, Vocabulary, is_path, word_key

_TOP_KEYS = {"classes", "splits", "ignore_label"}
_SPLIT_KEYS = {"images", "labels", "instances", "panoptic", "panoptic_pngs", "patches"}


def read_vocabulary(path: Path, content: Mapping[str, Any]) -> Vocabulary:
    """The words that the yaml gives its classes."""
    try:
        return Vocabulary.read(vocabulary_source(path, content["classes"]))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def vocabulary_source(path: Path, classes: Any) -> str | list[str]:
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


def check_classes(
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
    vocabulary = read_vocabulary(path, content)
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


def read_description(path: Path) -> dict[str, Any]:
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


def check_split(path: Path, name: str, split: Mapping[str, Any], content: Mapping[str, Any]) -> None:
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


def read_categories(listed: Path) -> list[dict[str, Any]]:
    """The categories of a COCO json, in the order of their ids.

    Raises:
        DataError: unreadable, none, one without id or name, or two with the same.
    """
    categories = read_json(listed).get("categories")
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no COCO json, which is an object with images, annotations and categories")
    return content
