"""Pascal-Part: conversion, registration and evaluation of images in the layout of the release."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image
from scipy.io import savemat

from proposal_cache import Patches
from samcp.config import load_config
from samcp.data.datasets.pascal_part.prepare import part_category, prepare_pascal_part
from samcp.data.datasets.pascal_part.register import OBJECTS, register_pascal_part
from samcp.errors import DataError
from samcp.trainer import Trainer
from samcp.vocabulary import Vocabulary
from tests.configs.test_recipes import SMALL
from tests.perfect_model import evaluate_truth
from tests.toy_datasets import write_patches

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_pascal_part as script

SIZE = (40, 60)
PARTS = Vocabulary.load("pascal_part").names


def box_mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


CAT = [("head", box_mask(5, 5, 15, 15)), ("lear", box_mask(5, 5, 8, 8)), ("rear", box_mask(5, 12, 8, 15))]
CAR = [
    ("wheel_1", box_mask(30, 32, 35, 37)),
    ("fliplate", box_mask(28, 40, 30, 44)),
    ("leftside", box_mask(20, 30, 30, 55)),
]
CAR += [("door_1", box_mask(0, 0, 0, 0))]  # hidden


def struct(**columns: list) -> np.ndarray:
    """Return a nested MATLAB struct array (1, N), as in the release."""
    array = np.empty((1, len(next(iter(columns.values())))), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        for i, value in enumerate(values):
            array[name][0, i] = value
    return array


def write_image(folder: Path, name: str, *objects: tuple) -> None:
    """Write an image of objects, each with name, mask, and the names and masks of its parts."""
    annotated = struct(
        **{"class": [kind for kind, _, _ in objects]},
        class_ind=[OBJECTS.index(kind) + 1 for kind, _, _ in objects],
        mask=[mask for _, mask, _ in objects],
        parts=[
            struct(part_name=[n for n, _ in parts], mask=[m for _, m in parts]) if parts else np.zeros((0, 0))
            for _, _, parts in objects
        ],
    )
    (folder / "Annotations_Part").mkdir(parents=True, exist_ok=True)
    anno = struct(imname=[name], objects=[annotated])
    savemat(folder / "Annotations_Part" / f"{name}.mat", {"anno": anno}, do_compression=True)
    images = folder / "VOCdevkit" / "VOC2010" / "JPEGImages"
    images.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(images / f"{name}.jpg")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "pascal_part"
    cat, car = ("cat", box_mask(5, 5, 30, 25), CAT), ("car", box_mask(20, 30, 35, 55), CAR)
    write_image(folder, "2008_000002", cat)
    write_image(folder, "2008_000003", cat, car)
    write_image(folder, "2010_000010", car)
    write_image(folder, "2010_000011", ("sofa", box_mask(10, 10, 30, 50), []))
    lists = folder / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2008_000002\n2008_000003\n")
    (lists / "val.txt").write_text("2010_000010\n2010_000011\n")
    return folder


@pytest.fixture
def pascal_part(release):
    """Convert and register the release."""
    prepare_pascal_part(release)
    register_pascal_part(release.parent)
    yield release
    register_pascal_part()


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("person", "lfoot", "person foot"),
        ("person", "ruarm", "person arm"),
        ("person", "lebrow", None),
        ("cow", "lfuleg", "cow leg"),
        ("dog", "rbpa", "dog paw"),
        ("horse", "lfho", None),
        ("bus", "window_12", "bus window"),
        ("car", "bliplate", "car license plate"),
        ("airplane", "engine_1", None),
        ("potted plant", "plant", "plant"),
        ("potted plant", "pot", "plant pot"),
        ("train", "coach_1", None),
    ],
)
def test_classes_of_parts_of_the_release(kind, part, name):
    category = part_category(OBJECTS.index(kind) + 1, part)
    assert (PARTS[category - 1] if category else None) == name


def test_script_writes_parts_and_parts_with_objects(release, monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys, "argv", ["prepare_pascal_part.py", "--folder", str(release)])
    script.main()
    assert "val: 1 images with parts, 2 in all" in capsys.readouterr().out
    assert "val.json, images with parts: found 1, the whole release has 4465" in caplog.text

    content = json.loads((release / "train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["2008_000002.jpg", "2008_000003.jpg"]
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = [(a["image_id"], names[a["category_id"]]) for a in content["annotations"]]
    cat = [(2008000003, part) for part in ("cat head", "cat ear", "cat ear")]
    assert found[3:] == [*cat, (2008000003, "car wheel"), (2008000003, "car license plate")]
    assert (content["annotations"][0]["bbox"], content["annotations"][0]["area"]) == ([5, 5, 10, 10], 100)

    general = json.loads((release / "val_general.json").read_text())
    assert (len(content["categories"]), len(general["categories"])) == (93, 113)
    assert general["categories"][:93] == content["categories"]
    assert general["annotations"][-1]["category_id"] == 94 + OBJECTS.index("sofa")


def test_second_run_keeps_existing_files(release):
    prepare_pascal_part(release)
    before = (release / "val.json").stat().st_mtime_ns
    (release / "train.json").unlink()
    done = prepare_pascal_part(release)
    assert done == {"train": "2 images with parts, 2 in all", "val": "done before"}
    assert (release / "val.json").stat().st_mtime_ns == before


def test_interrupted_run_continues(release):
    first, second = (release / "Annotations_Part" / f"2008_00000{i}.mat" for i in (2, 3))
    whole = second.read_bytes()
    second.write_bytes(whole[:200])
    with pytest.raises(DataError, match=second.name):
        prepare_pascal_part(release)
    second.write_bytes(whole)
    first.unlink()  # reading it again would fail
    assert prepare_pascal_part(release)["train"] == "2 images with parts, 2 in all"
    assert not list(release.glob("*_converted"))


def test_changed_list_of_images_is_converted_again(release):
    prepare_pascal_part(release)
    write_image(release, "2010_000012", ("cat", box_mask(0, 0, 0, 0), []))  # hidden, but VOC lists the image
    listed = release / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main" / "val.txt"
    listed.write_text(listed.read_text() + "2010_000012\n")
    done = prepare_pascal_part(release)
    assert done == {"train": "done before", "val": "1 images with parts, 3 in all"}
    assert prepare_pascal_part(release)["val"] == "done before"


def test_errors_name_the_file(release, tmp_path):
    with pytest.raises(DataError, match=r"Main/train\.txt: cannot be read.*VOCtrainval_03-May-2010\.tar"):
        prepare_pascal_part(tmp_path / "nothing")
    image = release / "VOCdevkit" / "VOC2010" / "JPEGImages" / "2008_000002.jpg"
    image.rename(tmp_path / image.name)
    with pytest.raises(DataError, match=r"1 of 2 images are missing, first \S*2008_000002\.jpg; unpack VOCtrainval"):
        prepare_pascal_part(release)
    (tmp_path / image.name).rename(image)
    path = release / "Annotations_Part" / "2008_000003.mat"
    content = path.read_bytes()
    for damaged in (content[:200], content[:150] + b"\xff" * 40 + content[190:]):  # the second one is a zlib.error
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"2008_000003\.mat: cannot be read as an annotation of Pascal-Part"):
            prepare_pascal_part(release)
    register_pascal_part(release.parent)
    try:
        with pytest.raises(FileNotFoundError, match=r"val\.json is missing; scripts/prepare_pascal_part\.py writes it"):
            DatasetCatalog.get("pascal_part_val")
    finally:
        register_pascal_part()


def test_parts_have_the_same_ids_in_both_datasets(pascal_part):
    parts, general = Vocabulary.of_dataset("pascal_part_train"), Vocabulary.of_dataset("pascal_part_general_train")
    assert (len(parts.names), len(general.names)) == (93, 113)
    assert general.names[:93] == parts.names
    assert all(general.is_thing)
    for name in ("pascal_part_train", "pascal_part_general_train"):
        record = DatasetCatalog.get(name)[0]
        assert Path(record["file_name"]).parent == Path(MetadataCatalog.get(name).image_root)
        classes = {general.names[a["category_id"]] for a in record["annotations"]}
        assert classes - {"cat"} == {"cat head", "cat ear"}


def test_ground_truth_scores_100(pascal_part, tmp_path):
    for name in ("pascal_part_train", "pascal_part_general_train"):
        assert evaluate_truth(name, tmp_path)["segm"]["AP"] == pytest.approx(100), name


def test_missed_ears(pascal_part, tmp_path):
    """All cat ears are missed, one of four classes."""
    ear = PARTS.index("cat ear")

    def drop_ears(outputs):
        instances = outputs["instances"]
        return {"instances": instances[instances.pred_classes != ear]}

    results = evaluate_truth("pascal_part_train", tmp_path, drop_ears)
    assert results["segm"]["AP-cat ear"] == pytest.approx(0)
    assert results["segm"]["AP"] == pytest.approx(75)


def test_model_of_parts_and_objects_is_evaluated_on_parts(pascal_part, tmp_path):
    """Config of Table 10, row 2: 113 classes in training, 93 in evaluation."""
    images = pascal_part / "VOCdevkit" / "VOC2010" / "JPEGImages"
    patches = {
        path.stem: Patches.from_masks(np.stack([box_mask(5, 5, 15, 15), box_mask(5, 5, 30, 25)]).astype(bool))
        for path in images.iterdir()
    }
    for split in ("train", "val"):
        write_patches(tmp_path / split, f"pascal_part_general_{split}", patches)
    settings = {
        **SMALL,
        "MODEL.SAMCP.TEXT.ENCODER": "learned",  # CLIP's weights would be downloaded
        "DATASETS.PATCHES_TRAIN": (str(tmp_path / "train"),),
        "DATASETS.PATCHES_TEST": (str(tmp_path / "val"),),
        "OUTPUT_DIR": str(tmp_path / "run"),
        "TEST.REPORT": False,
    }
    config = Path(__file__).parents[4] / "configs" / "pascal_part" / "samcp_R50_general.yaml"
    options = ["--config-file", str(config), *(str(part) for item in settings.items() for part in item)]
    trainer = Trainer(load_config(default_argument_parser().parse_args(options)))
    trainer.train()
    assert len(trainer._trainer.model.vocabulary.names) == 113
    metrics = trainer._last_eval_results["segm"]
    assert "AP-cat head" in metrics
    assert "AP-cat" not in metrics
