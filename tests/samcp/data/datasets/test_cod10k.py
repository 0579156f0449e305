"""COD10K: conversion, registration and evaluation of images in the layout of the release."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp.data.datasets.cod10k.prepare import prepare_cod10k
from samcp.data.datasets.cod10k.register import register_cod10k
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_cod10k as script

SIZE = (40, 60)
RED, BLUE, MIXED = (255, 0, 0), (0, 0, 255), (128, 0, 128)
LEFT, RIGHT, SEAM = np.s_[5:25, 5:20], np.s_[5:25, 21:40], np.s_[5:7, 20:21]


def write_image(folder: Path, name: str, *instances: tuple, with_colours: bool = True) -> None:
    """Write an image and its masks; each instance has a box and a colour."""
    colours, whole = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    for where, colour in instances:
        colours[where], whole[where] = colour, 255
    # A smoothing artifact beside the object, which belongs to no instance.
    whole[0, 0], colours[0, 0] = 40, (40, 40, 40)
    pictures = {"Image": (".jpg", np.zeros((*SIZE, 3), np.uint8)), "GT_Object": (".png", whole)}
    if with_colours:
        pictures["GT_Instance"] = (".png", colours)
    for kind, (suffix, pixels) in pictures.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}{suffix}")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "cod10k"
    two = ((LEFT, RED), (RIGHT, BLUE), (SEAM, MIXED))
    write_image(folder / "Train", "COD10K-CAM-1-Aquatic-13-Pipefish-4", *two)
    write_image(folder / "Train", "COD10K-CAM-3-Flying-65-Owl-11", (RIGHT, BLUE), with_colours=False)
    write_image(folder / "Train", "COD10K-NonCAM-1-Aquatic-3-Crab-2")
    write_image(folder / "Test", "COD10K-CAM-2-Terrestrial-46-StickInsect-1", (LEFT, RED))
    return folder


@pytest.fixture
def cod10k(release):
    """Convert and register the release."""
    prepare_cod10k(release)
    register_cod10k(release.parent)
    yield release
    register_cod10k()


def test_script_reads_instances_by_colour_and_classes_by_name(release, monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys, "argv", ["prepare_cod10k.py", "--folder", str(release), "--workers", "2"])
    script.main()
    assert "train: 2 images, 3 instances" in capsys.readouterr().out
    assert "images with camouflage: found 2, the whole release has 3040" in caplog.text
    content = json.loads((release / "train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "COD10K-CAM-1-Aquatic-13-Pipefish-4.jpg",
        "COD10K-CAM-3-Flying-65-Owl-11.jpg",
    ]
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = [(a["image_id"], names[a["category_id"]], a["bbox"], a["area"]) for a in content["annotations"]]
    # The two pixels of mixed colours are not an instance; blue has the smaller value and comes first.
    assert found == [
        (1, "pipefish", [21, 5, 19, 20], 380),
        (1, "pipefish", [5, 5, 15, 20], 300),
        (2, "owl", [21, 5, 19, 20], 380),
    ]


def test_second_run_keeps_existing_files(release):
    prepare_cod10k(release)
    (release / "test.json").unlink()
    assert prepare_cod10k(release) == {"train": "done before", "test": "1 images, 1 instances"}


def test_interrupted_run_continues(release):
    first, second = sorted((release / "Train" / "GT_Object").glob("COD10K-CAM*"))
    whole = second.read_bytes()
    second.write_bytes(whole[:40])
    with pytest.raises(DataError, match=second.name):
        prepare_cod10k(release)
    second.write_bytes(whole)
    first.unlink()  # reading it again would fail
    assert prepare_cod10k(release)["train"] == "2 images, 3 instances"
    assert not list(release.glob("*_converted"))


def test_changed_list_of_images_is_converted_again(release):
    prepare_cod10k(release)
    write_image(release / "Test", "COD10K-CAM-3-Flying-65-Owl-12", (RIGHT, BLUE))
    assert prepare_cod10k(release) == {"train": "done before", "test": "2 images, 2 instances"}
    assert prepare_cod10k(release)["test"] == "done before"


def test_errors_name_the_file(release, tmp_path):
    with pytest.raises(DataError, match=r"nothing/Train/Image: no COD10K-CAM-\*\.jpg; unpack COD10K-v3\.zip"):
        prepare_cod10k(tmp_path / "nothing")
    mask = release / "Train" / "GT_Object" / "COD10K-CAM-3-Flying-65-Owl-11.png"
    content = mask.read_bytes()
    mask.write_bytes(content[:40])
    with pytest.raises(DataError, match=r"65-Owl-11\.png: the ground truth cannot be read"):
        prepare_cod10k(release)
    Image.new("L", (7, 5)).save(mask)
    with pytest.raises(DataError, match=r"65-Owl-11\.jpg: is 40 x 60 pixels .* but its masks are \(5, 7\)"):
        prepare_cod10k(release)
    mask.write_bytes(content)
    write_image(release / "Train", "COD10K-CAM-3-Flying-70-Griffin-1")
    with pytest.raises(DataError, match=r"70-Griffin-1\.jpg: not a name of COD10K"):
        prepare_cod10k(release)
    register_cod10k(release.parent)
    try:
        with pytest.raises(FileNotFoundError, match=r"train\.json is missing; scripts/prepare_cod10k\.py writes it"):
            DatasetCatalog.get("cod10k_train")
    finally:
        register_cod10k()


def test_registered_classes(cod10k):
    vocabulary = Vocabulary.of_dataset("cod10k_test")
    record = DatasetCatalog.get("cod10k_test")[0]
    assert vocabulary.names[record["annotations"][0]["category_id"]] == "stick insect"
    assert Path(record["file_name"]).parent == Path(MetadataCatalog.get("cod10k_test").image_root)


def test_ground_truth_scores_100(cod10k, tmp_path):
    for name in ("cod10k_train", "cod10k_test"):
        assert evaluate_truth(name, tmp_path)["segm"]["AP"] == pytest.approx(100), name


def test_missed_owls(cod10k, tmp_path):
    owl = Vocabulary.load("cod10k").names.index("owl")

    def drop_owls(outputs):
        instances = outputs["instances"]
        return {"instances": instances[instances.pred_classes != owl]}

    assert evaluate_truth("cod10k_train", tmp_path, drop_owls)["segm"]["AP"] == pytest.approx(50)
