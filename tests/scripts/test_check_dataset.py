"""scripts/check_dataset.py on valid and invalid datasets, and a custom dataset from its yaml to results."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from PIL import Image

from samcp.checkpoint import Checkpointer
from samcp.config import load_config
from samcp.data.datasets.custom.register import VARIABLE, register_files
from samcp.errors import DataError
from samcp.export import ModelFile
from samcp.trainer import Trainer
from tests.samcp.data.datasets.test_custom import write_data
from tests.scripts.dataset_faults import (
    add_containing_kite,
    add_image,
    add_segment_without_pixels,
    break_box,
    break_polygon,
    duplicate,
    duplicate_as_boat,
    edit,
    fill,
    flip,
    renumber,
    set_value,
    wrong_area,
    wrong_height,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import check_dataset
import generate_sam_patches

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def beach(tmp_path, monkeypatch):
    """Return the folder of a valid dataset that is not registered."""
    monkeypatch.setenv(VARIABLE, "")
    before = set(DatasetCatalog)
    yield write_data(tmp_path / "beach").parent
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(script, monkeypatch, *arguments):
    """Run a script and return its exit status: 0, 1 or a message."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    try:
        script.main()
    except SystemExit as end:
        return end.code
    return 0


def test_valid_dataset(beach, tmp_path, monkeypatch, capsys):
    where = ("--output", tmp_path / "out", "--workers", "2")
    assert (
        run(check_dataset, monkeypatch, "--register", beach / "beach.yaml", "--register", beach / "kites.yaml", *where)
        == 0
    )
    out = capsys.readouterr().out
    for name in ("own_labels", "own_panoptic", "own_instances"):
        assert f"{name}: 2 images, 0 problems" in out
        page = (tmp_path / "out" / name / "index.html").read_text()
        assert (tmp_path / "out" / name / "index.html").read_text().count("<img") == 4
        assert "one.jpg" in page
    kites = next(line for line in out.splitlines() if line.startswith("kite"))
    assert kites.split() == ["kite", "2", "2", str(12 * 20 + 12 * 19)]


FAULTS = {
    "missing image": (lambda f: (f / "images/one.jpg").unlink(), "own_instances", r"one\.jpg: the image is missing"),
    "truncated image": (
        lambda f: (f / "images/one.jpg").write_bytes((f / "images/one.jpg").read_bytes()[:300]),
        "own_labels",
        r"one\.jpg: the image cannot be read",
    ),
    "image with an intact header": (
        lambda f: (f / "images/one.jpg").write_bytes((f / "images/one.jpg").read_bytes()[:-80]),
        "own_labels",
        r"one\.jpg: the image cannot be read",
    ),
    "label map with a flipped bit": (
        lambda f: flip(f / "labels/one.png", 60),
        "own_labels",
        r"one\.png: the ground truth cannot be read",
    ),
    "missing label map": (
        lambda f: (f / "labels/one.png").unlink(),
        "own_labels",
        r"one\.png: the ground truth is missing",
    ),
    "unknown label": (lambda f: fill(f / "labels/one.png", 7), "own_labels", r"one\.png: has the labels \[7\]"),
    "label map of another size": (
        lambda f: Image.new("L", (9, 9)).save(f / "labels/one.png"),
        "own_labels",
        r"one\.png: is \(9, 9\) .* but its image is \(40, 60\)",
    ),
    "wrong size in the json": (
        lambda f: edit(f / "instances.json", wrong_height),
        "own_instances",
        r"one\.jpg: is 40 x 60 pixels .* the dataset lists \(41, 60\)",
    ),
    "box outside the image": (
        lambda f: edit(f / "instances.json", break_box),
        "own_instances",
        r"one\.jpg: the box \[50, 8, 20, 12\].*exceeds the image, which is 60 x 40",
    ),
    "invalid polygon": (
        lambda f: edit(f / "instances.json", break_polygon),
        "own_instances",
        r"annotation 1 has a polygon of less than three points",
    ),
    "duplicate instance": (
        lambda f: edit(f / "instances.json", duplicate),
        "own_instances",
        r"one\.jpg: two instances of class 0 overlap with an IoU of 100%, at \[10, 8, 30, 20\]",
    ),
    "image without annotation": (
        lambda f: edit(f / "panoptic.json", add_image),
        "own_panoptic",
        r"panoptic\.json: image three\.jpg has no annotation, so it would be skipped",
    ),
    "different image ids in the two jsons": (
        lambda f: edit(f / "panoptic.json", renumber),
        "own_panoptic",
        r"instances\.json: lacks 2 of the image ids of .*panoptic\.json: 'x0', 'x1'",
    ),
    "additional image in the instance json": (
        lambda f: edit(f / "instances.json", add_image),
        "own_panoptic",
        r"panoptic\.json: lacks 1 of the image ids of .*instances\.json: 3;",
    ),
    "different images with the same id": (
        lambda f: edit(f / "instances.json", set_value("images", "file_name", "two.jpg")),
        "own_panoptic",
        r"instances\.json: image 0 is two\.jpg, but one\.jpg in .*panoptic\.json",
    ),
    "pixels of an unlisted segment": (
        lambda f: fill(f / "pngs/0.png", (44, 0, 0)),
        "own_panoptic",
        r"0\.png: 20 pixels have the id 44, which the json does not list",
    ),
    "segment without pixels": (
        lambda f: edit(f / "panoptic.json", add_segment_without_pixels),
        "own_panoptic",
        r"0\.png: segment 99 of the json has no pixel",
    ),
    "wrong area": (
        lambda f: edit(f / "panoptic.json", wrong_area),
        "own_panoptic",
        r"0\.png: segment 1 has 240 pixels, but area 5 in the json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_error_is_reported(beach, tmp_path, monkeypatch, capsys, fault):
    inject, name, message = FAULTS[fault]
    inject(beach)
    files = ("--register", beach / "beach.yaml", "--register", beach / "kites.yaml")
    assert run(check_dataset, monkeypatch, name, *files, "--output", tmp_path / "out") == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert len(problems) >= 1
    assert any(re.search(message, problem) for problem in problems), problems


def test_object_with_two_classes(beach, tmp_path, monkeypatch, capsys):
    edit(beach / "instances.json", duplicate_as_boat)
    assert run(check_dataset, monkeypatch, "--register", beach / "kites.yaml", "--output", tmp_path / "out") == 1
    message = "one.jpg: an instance of class 0 and one of class 1 overlap with an IoU of 100%, at [10, 8, 30, 20]"
    assert message in capsys.readouterr().out


def test_exif_orientation_and_16_bit_images(beach, tmp_path, monkeypatch, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(beach / "images" / "turned.jpg", exif=exif)
    Image.new("L", (60, 40)).save(beach / "labels" / "turned.png")
    where = ("--register", beach / "beach.yaml", "own_labels", "--output", tmp_path / "out")
    assert run(check_dataset, monkeypatch, *where) == 0
    Image.fromarray(np.zeros((40, 60), np.uint16)).save(beach / "images" / "deep.png")
    Image.new("L", (60, 40)).save(beach / "labels" / "deep.png")
    assert run(check_dataset, monkeypatch, *where) == 1
    assert "deep.png: the image cannot be read (it has more than 8 bits per channel" in capsys.readouterr().out


def test_unused_class_is_a_note(beach, tmp_path, monkeypatch, capsys):
    content = yaml.safe_load((beach / "beach.yaml").read_text())
    content["classes"] += ", boat"
    del content["splits"]["own_panoptic"]
    (beach / "beach.yaml").write_text(yaml.safe_dump(content))
    assert run(check_dataset, monkeypatch, "--register", beach / "beach.yaml", "--output", tmp_path / "out") == 0
    assert "own_labels: 1 of 3 classes never occur: boat" in capsys.readouterr().out


def test_notes(beach, tmp_path, monkeypatch, capsys):
    edit(beach / "instances.json", add_containing_kite)
    Image.new("L", (60, 40)).save(beach / "labels" / "three.png")
    content = yaml.safe_load((beach / "beach.yaml").read_text())
    content["classes"] = "kite, sea: water"
    (beach / "beach.yaml").write_text(yaml.safe_dump(content))
    files = ("--register", beach / "beach.yaml", "--register", beach / "kites.yaml")
    assert run(check_dataset, monkeypatch, *files, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    overlap = f"1 instances are more than 50% inside another of their class, in 1 images: {beach / 'images/one.jpg'}"
    assert f"own_instances: {overlap}" in out
    assert f"own_labels: 1 label maps have no image with the same name: {beach / 'labels/three.png'}" in out
    words = "1 categories have other words in classes: 'dragon' has the words 'kite'"
    assert f"own_panoptic: {beach / 'panoptic.json'}: {words}" in out


def test_records_without_image_ids(beach, tmp_path, monkeypatch, capsys):
    register_files([beach / "beach.yaml"])
    records = [{k: v for k, v in r.items() if k != "image_id"} for r in DatasetCatalog.get("own_labels")]
    DatasetCatalog.remove("own_labels")
    DatasetCatalog.register("own_labels", lambda: records)
    assert run(check_dataset, monkeypatch, "own_labels", "--output", tmp_path / "out") == 0
    assert "own_labels: 2 images, 0 problems" in capsys.readouterr().out


def test_unknown_datasets_and_files(beach, tmp_path, monkeypatch):
    assert "name datasets to check" in run(check_dataset, monkeypatch)
    assert "there is no dataset 'beech'" in run(check_dataset, monkeypatch, "beech", "--output", tmp_path)
    assert "gone.yaml" in run(check_dataset, monkeypatch, "--register", tmp_path / "gone.yaml")


@pytest.mark.parametrize(("option", "value"), [("--workers", "0"), ("--samples", "-1"), ("--show", "-1")])
def test_impossible_numbers_are_rejected_at_once(beach, monkeypatch, capsys, option, value):
    assert run(check_dataset, monkeypatch, "--register", beach / "kites.yaml", option, value) == 2
    assert f"argument {option}: must be a whole number" in capsys.readouterr().err


def shrink(cfg: CfgNode) -> CfgNode:
    cfg.defrost()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.SAMCP.ROI_FC_DIM = cfg.MODEL.SAMCP.FFN_DIM = 32
    cfg.freeze()
    return cfg


def test_custom_dataset_from_yaml_to_results(beach, tmp_path, monkeypatch, capsys):
    """Run the commands of docs/datasets.md: check, patch generation, training and evaluation."""
    register = ("--register", beach / "beach.yaml")
    patches = beach / "patches"
    options = ("--dataset", "own_labels", "--generator", "contours", "--patches", "30", "--output", patches)
    assert run(generate_sam_patches, monkeypatch, *register, *options) == 0
    assert run(check_dataset, monkeypatch, *register, "own_labels", "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "own_labels" / "index.html").read_text()
    assert page.count("<img") == 6, "pictures of patches are added"
    keys = ["DATASETS.TRAIN", "('own_labels',)", "DATASETS.TEST", "('own_labels',)", "MODEL.WEIGHTS", ""]
    keys += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    keys += ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    keys += ["DATALOADER.NUM_WORKERS", "0"]
    config = str(CONFIGS / "custom" / "semantic.yaml")
    trainer = Trainer(shrink(load_config(default_argument_parser().parse_args(["--config-file", config, *keys]))))
    trainer.train()
    trained = trainer._last_eval_results["sem_seg"]["mIoU"]
    assert "The 2 images of own_labels, the worst first" in (tmp_path / "run" / "report.html").read_text()
    del keys[:2]  # evaluation of a checkpoint does not need DATASETS.TRAIN
    with pytest.raises(DataError, match="DATASETS.TRAIN is empty"):
        Trainer(load_config(default_argument_parser().parse_args(["--config-file", config, *keys])))
    weights = tmp_path / "run" / "model_final.pth"
    cfg = shrink(load_config(default_argument_parser().parse_args(["--config-file", config, *keys])))
    model = Trainer.build_model(cfg)
    Checkpointer(model, cfg).load(str(weights))
    assert Trainer.test(cfg, model)["sem_seg"]["mIoU"] == pytest.approx(trained)

    DatasetCatalog.remove("own_labels")
    MetadataCatalog.remove("own_labels")
    assert ModelFile.of_checkpoint(weights).vocabulary.names == model.vocabulary.names, (
        "the checkpoint contains the vocabulary"
    )
    register_files([beach / "beach.yaml"])

    Image.new("RGB", (50, 40)).save(beach / "images" / "three.jpg")
    Image.new("L", (50, 40)).save(beach / "labels" / "three.png")
    capsys.readouterr()
    assert run(check_dataset, monkeypatch, *register, "own_labels", "--output", tmp_path / "out") == 1
    message = "repeat the command that generated it, which processes only the missing images "
    assert f"no patches of 'three'; {message}" in capsys.readouterr().out
