"""Custom datasets, described by a yaml file instead of Python code:

    # beach.yaml; paths are relative to this file
    classes: "kite, boat: ship | vessel, sea~"   # or a file of them; names and synonyms, ~ marks stuff
    splits:
      beach_train: {images: train, labels: train_labels}
      beach_val: {images: val, labels: val_labels}

A split is one registered dataset. It has a folder of images and one form of ground truth:

    labels: FOLDER                        PNGs of class ids, in the order of `classes`, with the names of the images;
                                          `ignore_label` (255) marks void pixels. No instances.
    instances: FILE                       COCO's instance json. No stuff.
    panoptic: FILE, panoptic_pngs: FOLDER COCO's panoptic json and its PNGs; `instances`, with the same images and
                                          things, adds AP.

The jsons do not need `classes`: their categories are the classes. If given, `classes` are the words for the text
encoder, in the order of the category ids. `patches` is the split's patch cache, used by configs that name none.

The environment variable SAMCP_REGISTER lists such files, separated by colons; the option --register of the commands
adds to it. Child processes inherit it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from proposal_cache.generation.sources import from_folder
from samcp.data.datasets.catalog import register
from samcp.data.datasets.custom.description import (
    check_classes,
    check_split,
    read_categories,
    read_description,
    read_vocabulary,
    vocabulary_source,
)
from samcp.data.validation.annotations import read_json
from samcp.data.validation.coco_json import compare_things
from samcp.errors import DataError

logger = logging.getLogger(__name__)

VARIABLE = "SAMCP_REGISTER"

_IGNORE_LABEL = 255


def register_files(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Register the datasets of yaml files in this process and, by SAMCP_REGISTER, in its future child processes.

    Returns:
        The names of the datasets.

    Raises:
        DataError: a file is missing or invalid.
    """
    known = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    added = [os.path.abspath(path) for path in paths]  # a child process may have another working directory
    names = [name for path in added for name in register_file(path)]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(known + added))
    return names


def register_environment() -> None:
    """Register the files of SAMCP_REGISTER; log errors as warnings, since the datasets may not be needed."""
    for path in os.environ.get(VARIABLE, "").split(os.pathsep):
        try:
            register_files([path] if path else [])
        except DataError as error:
            logger.warning("%s: %s", VARIABLE, error)


def register_file(path: str | os.PathLike[str]) -> list[str]:
    """Register the splits of one yaml file, and return their names. Annotations are read on first use.

    Raises:
        DataError: as :func:`register_files`.
    """
    path = Path(path)
    content = read_description(path)
    for name, split in content["splits"].items():
        if name in DatasetCatalog and MetadataCatalog.get(name).get("described_in") != str(path):
            raise DataError(f"{path}: a dataset {name} is already registered; give the split another name")
        check_split(path, name, split, content)
        files = {key: str(path.parent / str(value)) for key, value in split.items()}
        make = _panoptic if "panoptic" in split else _instances if "instances" in split else _labels
        register(name, **make(path, name, files, content))
    return list(content["splits"])


def _labels(path: Path, name: str, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    classes = read_vocabulary(path, content)
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
    categories = read_categories(Path(files["instances"]))
    check_classes(path, name, files["instances"], categories, {category["id"] for category in categories}, content)
    return {
        "load": partial(load_coco_json, files["instances"], files["images"], name),
        "evaluator_type": "coco",
        "json_file": files["instances"],
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
        **_common(path, files, content),
    }


def _panoptic(path: Path, name: str, files: Mapping[str, str], content: Mapping[str, Any]) -> dict[str, Any]:
    categories = read_categories(Path(files["panoptic"]))
    contiguous = {category["id"]: i for i, category in enumerate(categories)}
    things = {category["id"] for category in categories if category.get("isthing", 1)}
    names = [category["name"] for category in categories]
    marked = {category["id"] for category in categories if category.get("isthing")}
    check_classes(path, name, files["panoptic"], categories, marked, content)
    if "instances" in files:
        beside = read_categories(Path(files["instances"]))
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
        found["vocabulary"] = vocabulary_source(path, content["classes"])
    if "patches" in files:
        found["patches"] = files["patches"]
    return found


def _load_labels(images: str, labels: str) -> list[dict[str, Any]]:
    return [
        {
            "file_name": image.url,
            "image_id": image.key,
            "sem_seg_file_name": str(Path(labels) / f"{image.key}.png"),
        }
        for image in from_folder(images)
    ]


def _load_panoptic(files: Mapping[str, str], contiguous: Mapping[int, int], things: set[int]) -> list[dict[str, Any]]:
    """Load records. Unlike Detectron2's loader, allow ids of any type and PNGs with other names than the images."""
    listed = files["panoptic"]
    content = read_json(Path(listed))
    images = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            raise DataError(f"{listed}: annotates image {annotation['image_id']!r}, which is not in its images; add it")
        unknown = {segment["category_id"] for segment in annotation["segments_info"]} - contiguous.keys()
        if unknown:
            raise DataError(
                f"{listed}: {annotation['file_name']} has segments of category {sorted(unknown)}, which is not in its "
                "categories; add it"
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
