"""Custom datasets description by a yaml file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp import add_samcp_config
from samcp.data.build import load_dataset
from samcp.data.datasets.custom.register import VARIABLE, register_files
from samcp.data.image_io import read_image
from samcp.data.patch_caches import cache_paths
from samcp.errors import DataError
from samcp.evaluation.semantic import SemanticEvaluator
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth
from tests.scripts.dataset_faults import edit

SIZE = (40, 60)
NAMES = ("own_labels", "own_instances", "own_panoptic")


def write_data(folder: Path) -> Path:
    """Write two images of a kite over the sea with all three forms of annotations; return the path of the yaml."""
    for part in ("images", "labels/deep", "images/deep", "pngs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images, panoptic, instances = [], [], []
    for i, key in enumerate(("one", "deep/two")):
        labels = np.ones(SIZE, np.uint8)  # sea
        labels[:5] = 255
        labels[8:20, 10 + i : 30] = 0  # a kite
        Image.fromarray(labels * 40).convert("RGB").save(folder / "images" / f"{key}.jpg")
        Image.fromarray(labels).save(folder / "labels" / f"{key}.png")
        ids = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
        Image.fromarray(np.stack([ids, ids * 0, ids * 0], -1)).save(folder / "pngs" / f"{i}.png")
        images.append({"id": i, "file_name": f"{key}.jpg", "height": SIZE[0], "width": SIZE[1]})
        kite = {"bbox": [10 + i, 8, 20 - i, 12], "area": 12 * (20 - i), "iscrowd": 0}
        segments = [
            {"id": 1, "category_id": 7, **kite},
            {"id": 2, "category_id": 9, "iscrowd": 0, "area": int((ids == 2).sum())},
        ]
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
        polygon = [10 + i, 8, 30, 8, 30, 20, 10 + i, 20]
        instances.append({"id": i + 1, "image_id": i, "category_id": 7, "segmentation": [polygon], **kite})
    kite, sea = {"id": 7, "name": "dragon", "isthing": 1}, {"id": 9, "name": "water", "isthing": 0}
    (folder / "panoptic.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": [sea, kite]})
    )
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": [kite]})
    )
    splits = {
        "own_labels": {"images": "images", "labels": "labels", "patches": "patches"},
        "own_panoptic": {
            "images": "images",
            "panoptic": "panoptic.json",
            "panoptic_pngs": "pngs",
            "instances": "instances.json",
        },
    }
    (folder / "beach.yaml").write_text(yaml.safe_dump({"classes": "kite: dragon, sea~: water", "splits": splits}))
    (folder / "kites.yaml").write_text(
        yaml.safe_dump({"splits": {"own_instances": {"images": "images", "instances": "instances.json"}}})
    )
    return folder / "beach.yaml"


@pytest.fixture
def beach(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    path = write_data(tmp_path / "beach")
    names = register_files([path, path.with_name("kites.yaml")])
    yield path
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_all_forms_of_annotations_are_evaluated(beach, tmp_path):
    results = evaluate_truth("own_labels", tmp_path)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    results = evaluate_truth("own_instances", tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100)
    results = evaluate_truth("own_panoptic", tmp_path)
    assert [
        results[task][metric] for task, metric in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))
    ] == [pytest.approx(100)] * 3


def test_missed_kite(beach, tmp_path):
    seen = []

    def drop_first_kite(outputs):
        seen.append(outputs)
        if len(seen) > 1:
            return outputs
        ids, segments = outputs["panoptic_seg"]
        sea = [segment for segment in segments if not segment["isthing"]]
        labels = torch.where(outputs["sem_seg"] == 0, -1, outputs["sem_seg"])
        ids = torch.where(ids == sea[0]["id"], ids, 0)
        return {"panoptic_seg": (ids, sea), "instances": outputs["instances"][:0], "sem_seg": labels}

    results = evaluate_truth("own_panoptic", tmp_path, drop_first_kite)
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100 / 1.5)  # one true positive, one false negative
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
    assert results["sem_seg"]["IoU-kite"] == pytest.approx(100 * 19 / (20 + 19))


def test_words_from_the_yaml_and_isthing_from_the_json(beach):
    assert Vocabulary.of_dataset("own_panoptic").words == (("kite", "dragon"), ("sea", "water"))
    assert Vocabulary.of_dataset("own_panoptic").is_thing == (True, False)
    assert Vocabulary.of_dataset("own_labels").is_thing == (False, False), "label maps contain no instances"
    assert Vocabulary.of_dataset("own_instances").names == ("dragon",), "default: the names in the json"


def test_default_patch_caches_from_the_yaml(beach):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.DATASETS.TEST = ("own_labels",)
    assert cache_paths(cfg, is_train=False) == {"own_labels": str(beach.parent / "patches")}
    cfg.DATASETS.PATCHES_TEST = ("/elsewhere",)
    assert cache_paths(cfg, is_train=False) == {"own_labels": "/elsewhere"}


def test_child_processes_register_the_datasets(beach):
    """Spawned workers inherit SAMCP_REGISTER."""
    code = "import samcp.data, detectron2.data as d2; print(len(d2.DatasetCatalog.get('own_panoptic')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=dict(os.environ))
    assert done.stdout.strip() == "2"


def test_registering_a_name_again(beach, tmp_path):
    assert register_files([beach]) == ["own_labels", "own_panoptic"]
    other = write_data(tmp_path / "other")
    with pytest.raises(DataError, match=r"other.*beach.yaml: a dataset own_labels is already registered"):
        register_files([other])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read"),
        ("classes: kite", "splits is missing"),
        ("splits: {a: {images: images, labels: labels}}", "a: labels need classes"),
        ("splits: {a: {images: images}}", "a: needs images, and labels, or instances, or panoptic"),
        ("splits: {a: {images: images, panoptic: panoptic.json}}", "a: panoptic needs panoptic_pngs"),
        ("splits: {a: {images: gone, instances: instances.json}}", r"a: images is .*gone, which does not exist"),
        ("splits: {a: {images: ., instances: ''}}", r"a: instances is .*, which is a folder and no json"),
        ("splits: {a: {pictures: images, instances: instances.json}}", "a: unknown keys pictures; allowed are images"),
        (
            "class: kite\nsplits: {a: {images: images, instances: instances.json}}",
            "unknown keys class; allowed are classes",
        ),
        ("splits: {a: {images: images, instances: beach.yaml}}", r"beach.yaml: cannot be read as json"),
        ("splits: {../../a: {images: images, instances: instances.json}}", r"'../../a' cannot be the name of a split"),
        ("splits: {1: {images: images, instances: instances.json}}", "the key 1 is not text; put it in quotes"),
        ("splits: &s {a: {images: *s}}", "aliases .* expand to more than"),
        ("- splits", "must be an object, KEY: VALUE, not list"),
        ("splits: " + "[" * 1000, "cannot be read as yaml"),
        ("classes: 'kite,,sea'\nsplits: {a: {images: images, labels: labels}}", "wrong.yaml: .*class 2: an empty name"),
        (
            "classes: [kite, sea: water]\nsplits: {a: {images: images, labels: labels}}",
            r"classes, number 2, is \{'sea': 'water'\}, not text; put it in quotes",
        ),
        ("classes:\nsplits: {a: {images: images, labels: labels}}", "classes is None; write"),
        ("classes: []\nsplits: {a: {images: images, labels: labels}}", "the list has no classes"),
        (
            "classes: lists/beach\nsplits: {a: {images: images, labels: labels}}",
            "beach/lists/beach: neither one of .* nor a readable text file",
        ),
        (
            "classes: 'sea~, kite'\nsplits: {a: {images: images, panoptic: panoptic.json, panoptic_pngs: pngs}}",
            r"'sea~', which is stuff, at the place of category 7 'dragon' of .*panoptic\.json, which is a thing; "
            r"write them in the order of its category ids \(dragon, water\)",
        ),
        ("classes: kite~\nsplits: {a: {images: images, instances: instances.json}}", "which is stuff, at the place of"),
        (
            "classes: kite, sea\nsplits: {a: {images: images, instances: instances.json}}",
            r"classes has 2, but .*instances\.json has 1 categories; write them",
        ),
    ],
)
def test_errors_in_the_yaml(beach, content, message):
    path = beach.with_name("wrong.yaml")
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        register_files([path])
    assert "a" not in DatasetCatalog


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 3, "name": "dragon"}], r"instances\.json: has no category 7 'dragon', a thing of .*panoptic\.json"),
        ([{"id": 7, "name": "boat"}], r"instances\.json: category 7 is 'boat', but 'dragon' in .*panoptic\.json"),
        ([{"id": 7, "name": "dragon"}, {"id": 9, "name": "water"}], "category 9 'water' is not a thing of"),
        ([{"id": 7, "name": "dragon"}, {"id": 9, "name": "Dragon "}], "distinct names"),
        ([{"id": 7, "name": "dragon"}, {"id": "9", "name": "boat"}], "distinct ids"),
        (["dragon"], "categories need distinct ids"),
    ],
)
def test_things_of_both_jsons_must_agree(beach, categories, message):
    path = beach.with_name("instances.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": categories}))
    with pytest.raises(DataError, match=message):
        register_files([beach])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "instances.json",
            lambda a: a.update(segmentation={"size": [40, 60], "counts": [2**40]}),
            "counts do not describe",
        ),
        ("instances.json", lambda a: a.update(bbox="text"), "annotation 1 has the bbox 'text'"),
        ("instances.json", lambda a: a.pop("image_id"), "annotation 1 has no image_id"),
        ("panoptic.json", lambda a: a.pop("image_id"), "annotation 0.png has no image_id"),
        ("panoptic.json", lambda a: a["segments_info"][0].pop("category_id"), "that has no category_id"),
        ("panoptic.json", lambda a: a.update(segments_info=7), "has no segments_info"),
    ],
)
def test_loading_names_the_invalid_entry(beach, file, change, message):
    edit(beach.parent / file, lambda content: change(content["annotations"][0]))
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        load_dataset(f"own_{file[:-5]}")


def test_only_image_files_are_images_but_links_are_followed(beach, tmp_path):
    images = beach.parent / "images"
    (images / "folder.jpg").mkdir()
    os.mkfifo(images / "pipe.jpg")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "elsewhere" / "three.jpg")
    (images / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    keys = {record["image_id"] for record in load_dataset("own_labels")}
    assert {"one", "deep/two", "linked/three"} <= keys
    assert not {"folder", "pipe"} & keys


def test_pipes_are_not_read(beach):
    """Opening one would block for ever."""
    image = beach.parent / "images" / "one.jpg"
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(DataError, match=r"one.jpg: the image cannot be read \(it is not a file\)"):
        read_image(str(image), "RGB")


def test_classes_as_a_list(beach):
    content = yaml.safe_load(beach.read_text())
    content["classes"] = ["kite, dragon", "sea~: water, ocean"]
    beach.write_text(yaml.safe_dump(content))
    register_files([beach])
    for name in ("own_labels", "own_panoptic"):
        assert Vocabulary.of_dataset(name).words == (("kite", "dragon"), ("sea", "water", "ocean"))


def test_equal_file_names_in_two_folders(beach, tmp_path):
    """Images are identified by path; also, `classes` is a list and the folder name a number in YAML."""
    folder = beach.parent
    os.rename(folder / "images", folder / "2017")
    os.rename(folder / "2017" / "deep" / "two.jpg", folder / "2017" / "deep" / "one.jpg")
    content = json.loads((folder / "panoptic.json").read_text())
    content["images"][1]["file_name"] = "deep/one.jpg"
    (folder / "panoptic.json").write_text(json.dumps(content))
    split = {"images": 2017, "panoptic": "panoptic.json", "panoptic_pngs": "pngs"}
    description = {"classes": ["kite: dragon", "sea~"], "splits": {"own_panoptic": split}}
    beach.write_text(yaml.safe_dump(description))
    register_files([beach])
    assert Vocabulary.of_dataset("own_panoptic").words == (("kite", "dragon"), ("sea",))
    assert evaluate_truth("own_panoptic", tmp_path)["panoptic_seg"]["PQ"] == pytest.approx(100)


def test_evaluation_rejects_unknown_labels(beach, tmp_path):
    register_files([beach])
    path = beach.parent / "labels" / "one.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[30] = 3
    Image.fromarray(labels).save(path)
    inputs = [{"file_name": str(beach.parent / "images" / "one.jpg")}]
    evaluator = SemanticEvaluator("own_labels")
    evaluator.reset()
    with pytest.raises(DataError, match=r"one\.png: has the labels \[3\]"):
        evaluator.process(inputs, [{"sem_seg": torch.zeros(SIZE, dtype=torch.int64)}])
