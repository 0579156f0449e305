"""Baselines without Prompt II on a scene whose panoptic quality is known."""

import numpy as np
import pytest
import torch

from proposal_cache import Patches
from samcp.modeling.baselines import BaselineInference, touching
from samcp.modeling.inference import Inference, Predictions

HOUSE, SKY = 0, 1
# Houses 1 and 2 touch; house 3, apart from them, is cut into two halves; 0 is sky.
TRUTH = np.zeros((20, 60), dtype=int)
TRUTH[4:16, 2:12], TRUTH[4:16, 12:22], TRUTH[4:16, 40:50] = 1, 2, 3


def scene():
    """Return the patches, sky first, and predictions that label each patch correctly with confidence 0.9."""
    halves = [TRUTH == 3] * 2
    halves = [half & (np.arange(60) < 45 if i else np.arange(60) >= 45) for i, half in enumerate(halves)]
    patches = Patches.from_masks(np.stack([TRUTH == 0, TRUTH == 1, TRUTH == 2, *halves]))
    is_house = torch.tensor([False, True, True, True, True])
    predictions = Predictions(
        semantic_classes=torch.tensor([SKY]),
        semantic_scores=torch.tensor([0.9]),
        semantic_affinity=(~is_house).float()[None],
        instance_scores=torch.where(is_house[:, None], torch.tensor([0.9, 0.0]), torch.tensor([0.1, 0.0])),
        instance_affinity=torch.eye(5),
    )
    return patches, predictions


def thing_quality(panoptic):
    """Compute the PQ of the houses: the sum of matched IoUs / (matches + half of the unmatched)."""
    canvas, segments = panoptic[0].numpy(), [s for s in panoptic[1] if s["isthing"]]
    ious = [
        ((canvas == segment["id"]) & (house == TRUTH)).sum() / ((canvas == segment["id"]) | (house == TRUTH)).sum()
        for segment in segments
        for house in (1, 2, 3)
    ]
    matched = [iou for iou in ious if iou > 0.5]
    return sum(matched) / (len(matched) + (len(segments) + 3 - 2 * len(matched)) / 2)


OPTIONS = {"thing_classes": [HOUSE], "num_classes": 2}


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("patches", 2 / (2 + 3 / 2)),  # finds houses 1 and 2, splits house 3
        ("components", 1 / (1 + 3 / 2)),  # finds house 3, merges houses 1 and 2
    ],
)
def test_panoptic_quality_of_baseline(baseline, expected):
    patches, predictions = scene()
    result = BaselineInference(baseline=baseline, **OPTIONS)(predictions, patches)
    assert thing_quality(result["panoptic_seg"]) == pytest.approx(expected)
    assert np.array_equal(result["sem_seg"].numpy(), np.where(TRUTH == 0, SKY, HOUSE))


def test_model_that_merges_the_halves_finds_all_houses():
    patches, predictions = scene()
    predictions.instance_affinity[3, 4] = 1
    predictions.instance_scores[4] = 0.1
    assert thing_quality(Inference(**OPTIONS)(predictions, patches)["panoptic_seg"]) == 1


def test_patches_touch_across_a_small_gap_only():
    masks = np.zeros((3, 10, 30), dtype=bool)
    masks[0, :, :10] = masks[1, :, 12:20] = masks[2, :, 25:] = True
    assert touching(Patches.from_masks(masks)).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


@pytest.mark.parametrize("baseline", ["patches", "components"])
def test_image_without_patches_has_no_segments(baseline):
    empty = Predictions(torch.tensor([SKY]), torch.ones(1), *map(torch.zeros, ((1, 0), (0, 2), (0, 0))))
    result = BaselineInference(baseline=baseline, **OPTIONS)(empty, Patches.empty(20, 60))
    assert result["panoptic_seg"][1] == []
    assert len(result["instances"]) == 0
