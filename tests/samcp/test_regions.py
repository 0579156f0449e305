"""Regions of predictions and ground truths, and the PQ of single images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from proposal_cache import Patches
from samcp.data.datasets.catalog import register, unregister
from samcp.evaluation.image_quality import by_quality, image_quality
from samcp.regions import Regions, match_instances, predicted_regions, true_regions
from tests.perfect_model import evaluate_truth, perfect_outputs
from tests.toy_datasets import SIZE, panoptic_dataset


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with panoptic_dataset(tmp_path_factory.mktemp("toy"), "toy_regions") as name:
        yield name


def truth_of(record, name):
    return true_regions(record, SIZE, MetadataCatalog.get(name))


def shifted(outputs):
    """Return a panoptic output with the map moved by five pixels, and the second segment missing."""
    ids, segments = outputs["panoptic_seg"]
    ids = torch.roll(ids, 5, dims=1)
    ids[ids == segments[1]["id"]] = 0
    return {"panoptic_seg": (ids, [segments[0], *segments[2:]])}


@pytest.mark.parametrize("form", ["panoptic_seg", "instances", "sem_seg"])
def test_prediction_equal_to_the_truth_has_the_same_regions(toy, form):
    for record in DatasetCatalog.get(toy):
        truth = truth_of(record, toy)
        predicted = predicted_regions({form: perfect_outputs(record, toy)[form]})
        assert predicted.whole == (form != "instances")
        expected = {
            "panoptic_seg": ~truth.is_crowd,
            "instances": truth.is_thing & ~truth.is_crowd,
        }.get(form)
        if expected is not None:
            assert sorted(predicted.masks.rles) == sorted(truth.masks.select(np.flatnonzero(expected)).rles)
        else:
            assert predicted.classes.tolist() == sorted(set(truth.classes.tolist()))


def test_pixels_without_a_score_are_unlabelled():
    scores = torch.zeros(3, 4, 6)
    scores[2, :2] = 0.5
    regions = predicted_regions({"sem_seg": scores})
    assert regions.classes.tolist() == [2]
    assert regions.masks.areas.tolist() == [12]


def test_panoptic_output_takes_precedence_and_one_is_needed(toy):
    outputs = perfect_outputs(DatasetCatalog.get(toy)[0], toy)
    assert predicted_regions(outputs).is_thing.any()
    with pytest.raises(ValueError, match="it needs one of panoptic_seg"):
        predicted_regions({"proposals": None})


def test_quality_of_one_image_is_that_of_the_evaluator(toy, tmp_path):
    """Crowds and void are treated alike, since both use panopticapi."""
    for number, record in enumerate(DatasetCatalog.get(toy)):
        name = f"toy_regions_{number}"
        metadata = {k: v for k, v in MetadataCatalog.get(toy).as_dict().items() if k != "name"}
        metadata["panoptic_json"] = _json_of_one_image(metadata["panoptic_json"], record["image_id"], tmp_path)
        register(name, lambda record=record: [record], **metadata)
        try:
            options = [f"MODEL.SAMCP.TEST.{task}_ON" for task in ("SEMANTIC", "INSTANCE")]
            results = evaluate_truth(name, tmp_path / name, shifted, options[0], False, options[1], False)
        finally:
            unregister(name)
        predicted = predicted_regions(shifted(perfect_outputs(record, toy)))
        quality = image_quality(predicted, truth_of(record, toy))
        assert 0 < quality < 100
        assert quality == pytest.approx(results["panoptic_seg"]["PQ"])


def _json_of_one_image(path: str, image_id: int, folder: Path) -> str:
    content = json.loads(Path(path).read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == image_id]
    content["images"] = [i for i in content["images"] if i["id"] == image_id]
    target = folder / f"{image_id}.json"
    target.write_text(json.dumps(content))
    return str(target)


def boxes(*corners, classes, whole=False):
    """Return things that are boxes (x0, y0, x1, y1) in an image of 20 x 40 pixels."""
    masks = np.zeros((len(corners), 20, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    things = np.ones(len(corners), bool)
    return Regions(Patches.from_masks(masks), np.array(classes, np.int64), things, ~things, whole)


def test_instance_on_the_background_is_a_false_positive():
    truth = boxes((0, 0, 10, 10), classes=[0])
    extra = boxes((0, 0, 10, 10), (20, 0, 40, 20), classes=[0, 0])
    assert image_quality(truth, truth) == 100
    assert image_quality(extra, truth) == pytest.approx(100 / 1.5)
    assert image_quality(boxes(classes=[]), truth) == 0
    assert math.isnan(image_quality(boxes(classes=[]), boxes(classes=[])))


def test_each_instance_matches_at_most_once():
    truth = boxes((0, 0, 20, 20), classes=[0])
    twice = boxes((0, 0, 20, 19), (0, 0, 20, 20), (0, 0, 9, 20), classes=[0, 0, 0])
    assert match_instances(twice, truth) == [(1, 0)]
    assert match_instances(boxes((0, 0, 20, 20), classes=[1]), truth) == []


def test_images_are_ranked_by_quality():
    class Image:
        def __init__(self, quality):
            self.quality = quality

    assert [image.quality for image in by_quality(map(Image, (50.0, math.nan, 20.0)))] == [20.0, 50.0]
