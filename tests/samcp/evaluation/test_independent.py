"""Figures of imperfect predictions, equal to those of independent implementations."""

import contextlib
import copy
import io
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from proposal_cache import Patches
from samcp import add_samcp_config
from samcp.data.ground_truth import read_panoptic_ids
from samcp.evaluation import build_evaluator
from samcp.evaluation.instances import to_coco_results
from tests.perfect_model import instances_of, perfect_outputs
from tests.toy_datasets import panoptic_dataset

CLASSES = 4


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with panoptic_dataset(tmp_path_factory.mktemp("toy"), "toy_independent", count=8, patches=False) as name:
        yield name


@pytest.fixture(scope="module")
def predictions(toy):
    """Ground truth with moved, mislabelled and missing segments, by image id."""
    rng = np.random.default_rng(0)
    return {record["image_id"]: imperfect(rng, perfect_outputs(record, toy)) for record in DatasetCatalog.get(toy)}


@pytest.fixture(scope="module")
def results(toy, predictions, tmp_path_factory):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path_factory.mktemp("results"))
    evaluator = build_evaluator(cfg, toy)
    evaluator.reset()
    for record in DatasetCatalog.get(toy):
        evaluator.process([record], [copy.deepcopy(predictions[record["image_id"]])])  # Detectron2 changes the classes
    return evaluator.evaluate()


def imperfect(rng, outputs):
    ids, segments = outputs["panoptic_seg"]
    shift = tuple(rng.integers(-4, 5, 2))
    ids = np.roll(ids.numpy(), shift, (0, 1))
    kept = [s for s in segments if rng.random() > 0.1 and (ids == s["id"]).any()]
    kept = [{**s, "category_id": (s["category_id"] + (rng.random() < 0.2)) % CLASSES} for s in kept]
    kept = [{**s, "isthing": s["category_id"] < 2} for s in kept]
    ids = np.where(np.isin(ids, [s["id"] for s in kept]), ids, 0)
    labels = np.full(ids.shape, -1)
    for segment in kept:
        labels[ids == segment["id"]] = segment["category_id"]
    masks = outputs["instances"].pred_masks.tensor.numpy()
    masks = np.concatenate([np.roll(masks, shift, (1, 2)), masks & (rng.random(masks.shape[1:]) < 0.7)])
    classes = rng.integers(0, 2, len(masks))
    instances = instances_of(Patches.from_masks(masks), classes, rng.random(len(masks)))
    return {"panoptic_seg": (torch.from_numpy(ids), kept), "sem_seg": torch.from_numpy(labels), "instances": instances}


def truth_segments(toy):
    """Yield image id, ids (H, W) and segments of each image."""
    for record in DatasetCatalog.get(toy):
        yield record["image_id"], read_panoptic_ids(record["pan_seg_file_name"]), record["segments_info"]


def test_panoptic_quality_equals_panopticapi(toy, predictions, results, tmp_path):
    """By pq_compute, on files as they are submitted to COCO's server."""
    metadata = MetadataCatalog.get(toy)
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    dataset_id = {c: i for i, c in contiguous.items()}
    annotations = []
    for image_id, outputs in predictions.items():
        ids, segments = outputs["panoptic_seg"]
        Image.fromarray(id2rgb(ids.numpy())).save(tmp_path / f"{image_id}.png")
        segments = [{**s, "category_id": dataset_id[s["category_id"]]} for s in segments]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    (tmp_path / "found.json").write_text(json.dumps({"annotations": annotations}))
    with contextlib.redirect_stdout(io.StringIO()):
        expected = pq_compute(
            metadata.panoptic_json, str(tmp_path / "found.json"), metadata.panoptic_root, str(tmp_path)
        )
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("pq", "sq", "rq"):
            assert results["panoptic_seg"][metric.upper() + suffix] == pytest.approx(100 * expected[group][metric])
    assert 20 < results["panoptic_seg"]["PQ"] < 80


def test_panoptic_quality_equals_its_definition(toy, predictions, results):
    """PQ = sum of IoU of matches / (TP + FP / 2 + FN / 2), with masks."""
    sums, counts = defaultdict(float), defaultdict(float)
    for image_id, ids, segments in truth_segments(toy):
        found, listed = predictions[image_id]["panoptic_seg"]
        found = found.numpy()
        matched = set()
        crowds = {s["category_id"]: ids == s["id"] for s in segments if s["iscrowd"]}
        for segment in (s for s in segments if not s["iscrowd"]):
            truth, c, hit = ids == segment["id"], segment["category_id"], False
            for other in (s for s in listed if s["category_id"] == c):
                mask = (found == other["id"]) & (ids != 0)
                iou = (truth & mask).sum() / (truth | mask).sum()
                if iou > 0.5:
                    sums[c] += iou
                    hit = True
                    matched.add(other["id"])
            counts[c] += 1 if hit else 0.5
        for other in (s for s in listed if s["id"] not in matched):
            mask = found == other["id"]
            excused = (ids == 0) | crowds.get(other["category_id"], np.zeros(ids.shape, bool))
            counts[other["category_id"]] += 0.5 * ((mask & excused).sum() <= 0.5 * mask.sum())
    expected = 100 * np.mean([sums[c] / counts[c] for c in range(CLASSES)])
    assert results["panoptic_seg"]["PQ"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_average_precision_equals_pycocotools(toy, predictions, results, kind):
    metadata = MetadataCatalog.get(toy)
    dataset_id = {c: i for i, c in metadata.thing_dataset_id_to_contiguous_id.items()}
    found = [result for i, outputs in predictions.items() for result in to_coco_results(outputs["instances"], i)]
    found = [{**result, "category_id": dataset_id[result["category_id"]]} for result in found]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(metadata.json_file)
        for annotation in truth.dataset["annotations"]:
            annotation["id"] += 1  # the id 0 means "no match" to COCOeval
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = {name: 100 * value for name, value in zip(names, evaluation.stats, strict=False) if value >= 0}
    assert {name: results[kind][name] for name in expected} == pytest.approx(expected)
    assert 5 < results[kind]["AP"] < 95


def test_mean_iou_equals_sets_of_pixels(toy, predictions, results):
    intersection, union = np.zeros(CLASSES), np.zeros(CLASSES)
    for image_id, ids, segments in truth_segments(toy):
        labels = np.full(ids.shape, -1)
        for segment in segments:
            labels[ids == segment["id"]] = segment["category_id"]
        found = predictions[image_id]["sem_seg"].numpy()
        for c in range(CLASSES):
            intersection[c] += ((labels == c) & (found == c)).sum()
            union[c] += (((labels == c) | (found == c)) & (labels >= 0)).sum()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(intersection / union))
    assert 20 < results["sem_seg"]["mIoU"] < 90
