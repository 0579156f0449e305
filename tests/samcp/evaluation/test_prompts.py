"""Accuracy of the two prompts, counted by hand."""

import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from samcp.evaluation.prompts import PromptEvaluator
from samcp.modeling.inference import Predictions


@pytest.fixture
def evaluator():
    """Evaluator with the thing classes disc and square and the stuff class sky."""
    MetadataCatalog.get("prompts_toy").set(
        stuff_classes=["disc", "square", "sky"], thing_dataset_id_to_contiguous_id={0: 0, 1: 1}
    )
    evaluator = PromptEvaluator("prompts_toy", threshold=0.25, top_instances=100)
    evaluator.reset()
    yield evaluator
    MetadataCatalog.pop("prompts_toy")


def entities(classes, *members, num_patches=5):
    affinity = torch.zeros(len(classes), num_patches, dtype=torch.bool)
    for row, patches in zip(affinity, members, strict=True):
        row[patches] = True
    return Instances((10, 10), gt_classes=torch.tensor(classes, dtype=torch.long), gt_affinity=affinity)


def predictions(scores, affinity, sky_score, sky_affinity):
    return Predictions(
        semantic_classes=torch.tensor([2]),
        semantic_scores=torch.tensor([sky_score]),
        semantic_affinity=torch.tensor([sky_affinity]),
        instance_scores=torch.tensor(scores),
        instance_affinity=torch.tensor(affinity),
    )


# Patches 0, 1 and 2 form a disc, patch 3 is sky, patch 4 has no entity.
TRUTH = {"instances": entities([0], [0, 1, 2]), "sem_segments": entities([0, 2], [0, 1, 2], [3])}


def test_perfect_predictions(evaluator):
    predicted = predictions([[1.0, 0, 0]], [[1.0, 1, 1, 0, 0]], 1.0, [0.0, 0, 0, 1, 0])
    evaluator.process([TRUTH], [{"predictions": predicted}])
    metrics = evaluator.evaluate()
    assert metrics["prompt_1"]["accuracy"] == 100
    assert metrics["prompt_2"] == {"precision": 100, "recall": 100, "F1": 100}
    assert math.isnan(metrics["prompt_1"]["accuracy-square"]), "undefined without squares"


def test_errors_by_hand(evaluator):
    """One query merges patches 0, 1 and 4 as a disc, another 1 and 2 as a square; none predicts patch 3 as sky."""
    predicted = predictions(
        [[0.9, 0, 0], [0, 0.95, 0]], [[1.0, 0.8, 0, 0, 0.9], [0, 0.9, 0.9, 0, 0]], 0.9, [0.1, 0.1, 0.1, 0.0, 0.1]
    )
    evaluator.process([TRUTH], [{"predictions": predicted}])
    metrics = evaluator.evaluate()
    # Best labels: 0 disc, 1 and 2 square, 3 none.
    assert metrics["prompt_1"]["accuracy-disc"] == pytest.approx(100 / 3)
    assert metrics["prompt_1"]["accuracy-sky"] == 0
    assert metrics["prompt_1"]["accuracy"] == pytest.approx(100 / 6)
    # Discs: 0-1 correct, 0-4 and 1-4 wrong; squares: 1-2 wrong. True pairs: 0-1, 0-2, 1-2.
    assert metrics["prompt_2"]["precision"] == pytest.approx(25)
    assert metrics["prompt_2"]["recall"] == pytest.approx(100 / 3)
    assert metrics["prompt_2"]["F1"] == pytest.approx(200 / 7)


def test_image_without_patches(evaluator):
    nothing = {"instances": entities([0], [], num_patches=0), "sem_segments": entities([], num_patches=0)}
    predicted = predictions([[0.5, 0, 0]], [[]], 0.9, [])
    evaluator.process([nothing], [{"predictions": predicted}])
    metrics = evaluator.evaluate()
    assert math.isnan(metrics["prompt_1"]["accuracy"])
    assert math.isnan(metrics["prompt_2"]["F1"])
