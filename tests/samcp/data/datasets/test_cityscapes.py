"""Cityscapes: conversion, registration and evaluation of two scenes in the layout of the release."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator
from detectron2.utils import comm
from PIL import Image
from torch.nn.functional import one_hot

from samcp import add_samcp_config
from samcp.data.datasets.cityscapes.prepare import prepare_cityscapes
from samcp.data.datasets.cityscapes.register import register_cityscapes
from samcp.data.datasets.subset import register_subset
from samcp.data.ground_truth import read_label_map
from samcp.errors import DataError, UsageError
from samcp.evaluation import build_evaluator
from samcp.evaluation.semantic import SemanticEvaluator
from samcp.vocabulary import Vocabulary
from tests.perfect_model import evaluate_truth, perfect_outputs

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
import prepare_cityscapes as script

SIZE = (48, 96)
UNLABELLED, EGO_VEHICLE, ROAD, SKY, CAR, BICYCLE = 0, 1, 7, 23, 26, 33  # the release's label ids
PANOPTIC_VAL = "cityscapes_fine_panoptic_val"
WITHOUT_AP = ("MODEL.SAMCP.TEST.INSTANCE_ON", False)


def write_release(folder: Path, name: str) -> None:
    """Write a scene of two cars, a group of bicycles, road, sky and the ego vehicle."""
    ids = np.full(SIZE, SKY, np.int32)
    ids[24:] = ROAD
    ids[44:] = EGO_VEHICLE
    ids[:2] = UNLABELLED
    ids[26:38, 4:24], ids[26:38, 40:60] = 1000 * CAR, 1000 * CAR + 1
    ids[30:42, 70:90] = BICYCLE
    city = name.split("_")[0]
    truth, images = folder / "gtFine" / "val" / city, folder / "leftImg8bit" / "val" / city
    truth.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(truth / f"{name}_gtFine_instanceIds.png")
    labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
    Image.fromarray(labels).save(truth / f"{name}_gtFine_labelIds.png")
    Image.new("RGB", SIZE[::-1]).save(images / f"{name}_leftImg8bit.png")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "cityscapes"
    write_release(folder, "frankfurt_000000_000294")
    write_release(folder, "munster_000001_000019")
    return folder


@pytest.fixture
def cityscapes(release):
    """Convert and register the release."""
    prepare_cityscapes(release)
    register_cityscapes(release.parent)
    yield release
    register_cityscapes()


def test_script_writes_label_maps_and_panoptic_files(release, monkeypatch, capsys, caplog):
    monkeypatch.setattr(sys, "argv", ["prepare_cityscapes.py", "--folder", str(release), "--workers", "2"])
    script.main()
    assert "val: 2 images" in capsys.readouterr().out
    assert "gtFine/val, annotations: found 2, the whole release has 500" in caplog.text
    assert "leftImg8bit/val, images: found 2, the whole release has 500" in caplog.text

    labels = read_label_map(str(release / "gtFine/val/munster/munster_000001_000019_gtFine_labelTrainIds.png"))
    points = {"void": (0, 0), "sky": (10, 0), "road": (25, 0), "car": (30, 10), "bicycle": (35, 80), "bonnet": (46, 0)}
    found = {name: int(labels[point]) for name, point in points.items()}
    assert found == {"void": 255, "sky": 10, "road": 0, "car": 13, "bicycle": 18, "bonnet": 255}
    content = json.loads((release / "gtFine" / "cityscapes_panoptic_val.json").read_text())
    segments = {s["id"]: s for s in content["annotations"][1]["segments_info"]}
    assert {i: (s["category_id"], s["iscrowd"]) for i, s in segments.items()} == {
        ROAD: (ROAD, 0),
        SKY: (SKY, 0),
        BICYCLE: (BICYCLE, 1),
        1000 * CAR: (CAR, 0),
        1000 * CAR + 1: (CAR, 0),
    }
    assert (segments[1000 * CAR]["area"], segments[1000 * CAR]["bbox"]) == (12 * 20, [4, 26, 20, 12])


def test_interrupted_run_continues(release):
    prepare_cityscapes(release)
    (existing, removed) = sorted((release / "gtFine" / "cityscapes_panoptic_val").iterdir())
    before = existing.stat().st_mtime_ns, removed.read_bytes()
    removed.unlink()
    prepare_cityscapes(release)
    assert (existing.stat().st_mtime_ns, removed.read_bytes()) == before


def test_errors_name_the_missing_file(release, tmp_path):
    with pytest.raises(DataError, match=r"nothing: no gtFine.*unpack gtFine_trainvaltest\.zip"):
        prepare_cityscapes(tmp_path / "nothing")
    register_cityscapes(release.parent)
    try:
        with pytest.raises(FileNotFoundError, match=r"val\.json is missing; scripts/prepare_cityscapes\.py writes it"):
            DatasetCatalog.get(PANOPTIC_VAL)
    finally:
        register_cityscapes()
    (release / "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"munster_000001_000019_gtFine_labelIds\.png: the ground truth is missing"):
        prepare_cityscapes(release)


def test_annotations_without_images(release):
    (release / "leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are missing, first \S*munster_000001_000019_leftImg8bit\.png"):
        prepare_cityscapes(release)
    shutil.rmtree(release / "leftImg8bit")
    with pytest.raises(DataError, match=r"2 of 2 images are missing, .*; unpack leftImg8bit_trainvaltest\.zip"):
        prepare_cityscapes(release)
    assert not list(release.glob("gtFine/*.json"))


def test_records_have_isthing_and_label_maps(cityscapes):
    vocabulary = Vocabulary.of_dataset(PANOPTIC_VAL)
    assert (len(vocabulary.names), sum(vocabulary.is_thing)) == (19, 8)
    record = DatasetCatalog.get(PANOPTIC_VAL)[1]
    assert record["image_id"] == "munster_000001_000019"
    assert Path(record["file_name"]).is_relative_to(MetadataCatalog.get(PANOPTIC_VAL).image_root)
    found = {(vocabulary.names[s["category_id"]], s["isthing"]) for s in record["segments_info"]}
    assert found == {("road", False), ("sky", False), ("car", True), ("bicycle", True)}


def test_ground_truth_scores_100(cityscapes, tmp_path):
    results = evaluate_truth(PANOPTIC_VAL, tmp_path, lambda outputs: outputs, *WITHOUT_AP)
    for task, metric in (("panoptic_seg", "PQ_th"), ("panoptic_seg", "PQ_st"), ("sem_seg", "mIoU")):
        assert results[task][metric] == pytest.approx(100), (task, metric)


def test_subset_is_evaluated_although_the_release_has_more_images(cityscapes, tmp_path):
    subset = register_subset(PANOPTIC_VAL, 1, tmp_path)
    results = evaluate_truth(subset, tmp_path, lambda outputs: outputs)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert "segm" not in results
    DatasetCatalog.remove(subset)
    MetadataCatalog.remove(subset)


def test_cars_predicted_as_bicycles(cityscapes, tmp_path):
    """Cars are missed; as bicycles they are false positives, since they do not overlap the crowd of bicycles."""

    def predict_bicycles(outputs):
        ids, segments = outputs["panoptic_seg"]
        labels = outputs["sem_seg"]
        labels[labels == 13] = 18
        segments = [{**s, "category_id": 18 if s["category_id"] == 13 else s["category_id"]} for s in segments]
        return {**outputs, "panoptic_seg": (ids, segments), "sem_seg": labels}

    results = evaluate_truth(PANOPTIC_VAL, tmp_path, predict_bicycles, *WITHOUT_AP)
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(0)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(50)  # mean of road, sky, cars and bicycles
    assert results["sem_seg"]["IoU-car"] == pytest.approx(0)
    # 12 × 20 pixels of bicycles are correct, 2 × 12 × 20 pixels of cars are not.
    assert results["sem_seg"]["IoU-bicycle"] == pytest.approx(100 / 3)
    assert results["sem_seg"]["mIoU"] == pytest.approx((100 + 100 + 0 + 100 / 3) / 4)


def test_ap_without_cityscapesscripts(cityscapes, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install cityscapesscripts, or .*INSTANCE_ON False"):
        evaluate_truth(PANOPTIC_VAL, tmp_path)


def test_ap_on_several_machines(cityscapes, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)  # one process per machine
    cfg = get_cfg()
    add_samcp_config(cfg)
    with pytest.raises(UsageError, match=r"on several machines: .* one .*MODEL.SAMCP.TEST.INSTANCE_ON False"):
        build_evaluator(cfg, PANOPTIC_VAL)
    cfg.merge_from_list(WITHOUT_AP)
    build_evaluator(cfg, PANOPTIC_VAL)


def test_official_ap(cityscapes, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    results = evaluate_truth(PANOPTIC_VAL, tmp_path)
    assert results["segm"]["AP"] == pytest.approx(100, abs=1e-3)
    # One of the second image's two cars is missing; car is the only class with instances.
    results = evaluate_truth(PANOPTIC_VAL, tmp_path, lambda o: {**o, "instances": o["instances"][:1]})
    assert 0 < results["segm"]["AP"] < 60
    assert not list((tmp_path / "here").iterdir()), "evaluation must not write to the working directory"


def test_panoptic_files_equal_those_of_the_official_script(cityscapes, tmp_path):
    convert2panoptic(str(cityscapes / "gtFine"), str(tmp_path), False, ["val"])
    theirs = json.loads((tmp_path / "cityscapes_panoptic_val.json").read_text())
    ours = json.loads((cityscapes / "gtFine" / "cityscapes_panoptic_val.json").read_text())
    assert ours["annotations"] == theirs["annotations"]
    assert ours["categories"] == [{key: c[key] for key in ("id", "name", "isthing")} for c in theirs["categories"]]
    for png in (tmp_path / "cityscapes_panoptic_val").iterdir():
        written = cityscapes / "gtFine" / "cityscapes_panoptic_val" / png.name
        assert np.array_equal(np.asarray(Image.open(written)), np.asarray(Image.open(png)))


def test_miou_equals_the_official_iou(cityscapes):
    rng = np.random.default_rng(0)
    ours, official = SemanticEvaluator(PANOPTIC_VAL), CityscapesSemSegEvaluator(PANOPTIC_VAL)
    ours.reset()
    official.reset()
    for record in DatasetCatalog.get(PANOPTIC_VAL):
        labels = perfect_outputs(record, PANOPTIC_VAL)["sem_seg"].numpy()
        wrong = (rng.random(labels.shape) < 0.3) | (labels < 0)
        labels = torch.from_numpy(np.where(wrong, rng.choice([0, 10, 13, 18], labels.shape), labels))
        ours.process([record], [{"sem_seg": labels}])
        official.process([record], [{"sem_seg": one_hot(labels, 19).permute(2, 0, 1).float()}])
    expected = official.evaluate()["sem_seg"]["IoU"]
    assert 0 < expected < 100
    assert ours.evaluate()["sem_seg"]["mIoU"] == pytest.approx(expected)
