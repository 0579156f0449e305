"""ADE20K: conversion, registration and evaluation of two images in the layout of the releases."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from samcp.data.datasets.ade20k.prepare import prepare_ade20k
from samcp.data.datasets.ade20k.register import register_ade20k
from samcp.data.ground_truth import read_label_map, read_panoptic_ids
from samcp.errors import DataError
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_ade20k as script

SIZE = (40, 60)
WALL, BED, PERSON, CHAIR = 1, 8, 13, 20  # in the label maps
BED_THING, PERSON_THING, CHAIR_THING = 1, 4, 8  # in the instance release, which has separate ids


def write_release(folder: Path, name: str, *, instances: bool = True) -> None:
    """Write a bed, two chairs and a person without instance in front of a wall; one chair overlaps the wall."""
    labels = np.full(SIZE, WALL, np.uint8)
    labels[:5] = 0  # void
    things = np.zeros((*SIZE, 3), np.uint8)
    for number, (top, left, label, thing) in enumerate(
        [(10, 5, BED, BED_THING), (20, 20, CHAIR, CHAIR_THING), (20, 40, CHAIR, CHAIR_THING)], start=1
    ):
        labels[top : top + 10, left : left + 10] = label
        things[top : top + 10, left : left + 10, :2] = (thing, number)
    things[30:32, 40:50, :2] = (CHAIR_THING, 3)
    labels[35:, 50:] = PERSON
    for part, pixels in (("annotations", labels), ("annotations_instance", things)):
        if part == "annotations" or instances:
            (folder / part / "validation").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / part / "validation" / f"{name}.png")
    (folder / "images" / "validation").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / "validation" / f"{name}.jpg")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        write_release(folder, name)
    return folder


@pytest.fixture
def ade20k(release):
    """Convert and register the release."""
    prepare_ade20k(release)
    register_ade20k(release.parent)
    yield release
    register_ade20k()


def test_script_converts_both_releases(release, monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys, "argv", ["prepare_ade20k.py", "--folder", str(release)])
    script.main()
    assert "val: 2 images, semantic, instance and panoptic" in capsys.readouterr().out
    for part in ("images", "annotations", "annotations_instance"):
        assert f"{part}/validation, files: found 2, the whole release has 2000" in caplog.text

    labels = read_label_map(str(release / "annotations_detectron2" / "validation" / "ADE_val_00000001.png"))
    assert labels[0, 0] == 255
    assert labels[20, 0] == WALL - 1
    ids = read_panoptic_ids(str(release / "ade20k_panoptic_val" / "ADE_val_00000001.png"))
    content = json.loads((release / "ade20k_panoptic_val.json").read_text())
    found = {s["id"]: s for s in content["annotations"][0]["segments_info"]}
    assert sorted(s["category_id"] + 1 for s in found.values()) == [WALL, BED, CHAIR, CHAIR]
    for i, segment in found.items():
        assert segment["area"] == (ids == i).sum()
    assert found[ids[31, 45]]["bbox"] == [40, 20, 10, 12]  # the chair takes precedence over the wall
    assert ids[0, 0] == ids[36, 55] == 0  # void, and a person without instance
    assert [c["name"] for c in content["categories"] if c["isthing"]][CHAIR_THING - 1] == "chair"


def test_interrupted_run_continues(release):
    prepare_ade20k(release)
    existing = release / "ade20k_panoptic_val" / "ADE_val_00000001.png"
    removed = release / "ade20k_panoptic_val" / "ADE_val_00000002.png"
    before = existing.stat().st_mtime_ns, removed.read_bytes()
    removed.unlink()
    assert prepare_ade20k(release, workers=2) == {"val": "2 images, semantic, instance and panoptic"}
    assert (existing.stat().st_mtime_ns, removed.read_bytes()) == before
    assert not list(release.rglob(".*"))  # no temporary files


def test_semantic_part_without_instance_release(tmp_path):
    write_release(tmp_path, "ADE_val_00000001", instances=False)
    found = prepare_ade20k(tmp_path)["val"]
    assert found.startswith("1 images, semantic; for instances and panoptic unpack annotations_instance.tar")
    assert not (tmp_path / "ade20k_panoptic_val.json").exists()


def test_errors_name_the_file(release, tmp_path):
    with pytest.raises(DataError, match=r"nothing: no images/training/\*\.jpg"):
        prepare_ade20k(tmp_path / "nothing")
    path = release / "annotations_instance" / "validation" / "ADE_val_00000002.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[20, 20, 0] = BED_THING
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=r"00000002\.png: an instance \(green\) must have one class 1\.\.100.*\(2, 1\)"):
        prepare_ade20k(release)
    path.unlink()
    with pytest.raises(DataError, match=r"00000002\.png: the ground truth is missing"):
        prepare_ade20k(release)


def test_unprepared_dataset_names_the_script(tmp_path):
    register_ade20k(tmp_path)
    try:
        for name in ("ade20k_panoptic_val", "ade20k_instance_train"):
            with pytest.raises(FileNotFoundError, match=r"ade20k_.*\.json is missing; scripts/prepare_ade20k\.py"):
                DatasetCatalog.get(name)
    finally:
        register_ade20k()


def test_registered_classes(ade20k):
    for name, count in (("ade20k_panoptic_val", 150), ("ade20k_instance_val", 100)):
        vocabulary = Vocabulary.of_dataset(name)
        assert (len(vocabulary.names), sum(vocabulary.is_thing)) == (count, 100)
        (record, _) = DatasetCatalog.get(name)
        assert record["image_id"] == "ADE_val_00000001"
        assert Path(record["file_name"]).parent == Path(MetadataCatalog.get(name).image_root)
        segments = record.get("segments_info", record.get("annotations"))
        things = [s for s in segments if s.get("isthing", True)]
        assert [vocabulary.names[s["category_id"]] for s in things] == ["bed", "chair", "chair"]


def test_ground_truth_scores_100(ade20k, tmp_path):
    results = evaluate_truth("ade20k_panoptic_val", tmp_path)
    for task, metric in (("panoptic_seg", "PQ_th"), ("panoptic_seg", "PQ_st"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert results[task][metric] == pytest.approx(100), (task, metric)
    assert results["sem_seg"]["IoU-person"] == pytest.approx(100)  # only in the label maps
    assert evaluate_truth("ade20k_instance_val", tmp_path)["segm"]["AP"] == pytest.approx(100)


def test_missed_chair(ade20k, tmp_path):
    """One of two chairs per image is predicted; RQ and recall are computed by hand."""

    def drop_chair(outputs):
        ids, segments = outputs["panoptic_seg"]
        removed = max(s["id"] for s in segments if s["isthing"])
        ids[ids == removed] = 0
        outputs["sem_seg"][:, 40:50][outputs["sem_seg"][:, 40:50] == CHAIR - 1] = -1
        return {
            **outputs,
            "instances": outputs["instances"][:2],
            "panoptic_seg": (ids, [s for s in segments if s["id"] != removed]),
        }

    results = evaluate_truth("ade20k_panoptic_val", tmp_path, drop_chair)
    # One chair of two: RQ = 1 / (1 + 0.5); bed and wall are perfect.
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert results["panoptic_seg"]["SQ"] == pytest.approx(100)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100)
    # COCO samples precision at recalls 0, 0.01, ..., 1; with half of the chairs it is 1 up to recall 0.5.
    assert results["segm"]["AP"] == pytest.approx(100 * (1 + 51 / 101) / 2)
    assert results["sem_seg"]["IoU-chair"] == pytest.approx(50)
    assert results["sem_seg"]["IoU-bed"] == pytest.approx(100)
