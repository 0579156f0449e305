"""Segmentations against literal implementations that loop over pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from proposal_cache import Patches
from samcp.modeling.inference import MERGE_RULES, Inference, Predictions
from samcp.modeling.overlaps import UNLABELED

THINGS, CLASSES = [0, 1, 2], 5


def make_predictions(num_patches: int, *, semantic: list[int], instances: int, seed: int = 0) -> Predictions:
    torch.manual_seed(seed)
    return Predictions(
        semantic_classes=torch.tensor(semantic, dtype=torch.long),
        semantic_scores=torch.rand(len(semantic)),
        semantic_affinity=torch.rand(len(semantic), num_patches),
        instance_scores=torch.rand(instances, CLASSES),
        instance_affinity=torch.rand(instances, num_patches),
    )


def members(affinity: torch.Tensor) -> list[int]:
    low, high = affinity.min(), affinity.max()
    return [n for n, a in enumerate(affinity) if (a - low) / (high - low) > 0.5]


@pytest.mark.parametrize("merge", MERGE_RULES)
@pytest.mark.parametrize("semantic", [[3, 4], [0, 1, 2, 3, 4]], ids=["stuff", "all"])
def test_semantic_map_pixel_by_pixel(toy: Any, semantic: list[int], merge: str) -> None:
    patches = toy.patches(12, 20, 30)
    predictions = make_predictions(12, semantic=semantic, instances=12)
    options = {"thing_classes": THINGS, "num_classes": CLASSES, "merge": merge}
    label = Inference(**options).semantic(predictions, patches)
    scores = Inference(**options, sem_seg_scores=True).semantic(predictions, patches)
    masks = patches.decode()
    value = np.zeros((12, CLASSES))

    def membership(affinity: torch.Tensor, n: int) -> float:
        return float(affinity[n]) if merge == "mean" else float(n in members(affinity))

    for n in range(12):
        for q, c in enumerate(semantic):
            value[n, c] = predictions.semantic_scores[q] * membership(predictions.semantic_affinity[q], n)
        for c in set(THINGS) - set(semantic):
            value[n, c] = max(
                predictions.instance_scores[q, c] * membership(predictions.instance_affinity[q], n) for q in range(12)
            )
    for y in range(20):
        for x in range(30):
            votes = [(value[n], 1 / masks[n].sum()) for n in np.flatnonzero(masks[:, y, x])]
            if not votes:
                assert label[y, x] == -1
                assert not scores[:, y, x].any()
                continue
            if not any(v.any() for v, _ in votes):
                assert label[y, x] == -1, "pixel is covered by patches of no query"
                continue
            if merge == "mean":
                expected = sum(v * w for v, w in votes) / sum(w for _, w in votes)
            else:
                expected = np.max([v for v, _ in votes], axis=0)
            assert scores[:, y, x].tolist() == pytest.approx(expected.tolist())
            assert label[y, x] == np.argmax(expected)


def test_pixels_below_semantic_threshold_are_unlabeled() -> None:
    masks = np.zeros((2, 10, 10), bool)
    masks[0, :5], masks[1, 5:] = True, True
    predictions = Predictions(
        semantic_classes=torch.tensor([3, 4]),
        semantic_scores=torch.tensor([0.9, 0.9]),
        semantic_affinity=torch.tensor([[0.9, 0.01], [0.01, 0.02]]),
        instance_scores=torch.zeros(0, CLASSES),
        instance_affinity=torch.zeros(0, 2),
    )
    label = Inference(thing_classes=THINGS, num_classes=CLASSES).semantic(predictions, Patches.from_masks(masks))
    assert (label[:5] == 3).all()
    assert (label[5:] == -1).all()


def test_large_patches_have_less_weight() -> None:
    """A large patch with a high score does not override a small patch inside it."""
    masks = np.ones((2, 10, 10), bool)
    masks[1, 4:] = False
    predictions = Predictions(
        semantic_classes=torch.tensor([3, 4]),
        semantic_scores=torch.tensor([0.99, 0.95]),
        semantic_affinity=torch.tensor([[0.97, 0.0], [0.0, 1.0]]),
        instance_scores=torch.zeros(0, CLASSES),
        instance_affinity=torch.zeros(0, 2),
    )
    label = Inference(thing_classes=THINGS, num_classes=CLASSES).semantic(predictions, Patches.from_masks(masks))
    assert (label[:4] == 4).all()
    assert (label[4:] == 3).all()


def test_instances(toy: Any) -> None:
    patches = toy.patches(10)
    predictions = make_predictions(10, semantic=[3, 4], instances=10)
    result = Inference(thing_classes=THINGS, num_classes=CLASSES, top_instances=8).instances(predictions, patches)
    pairs = sorted(((float(predictions.instance_scores[q, c]), q, c) for q in range(10) for c in THINGS), reverse=True)[
        :8
    ]
    masks = patches.decode()
    assert result.scores.tolist() == pytest.approx([p[0] for p in pairs])
    assert result.pred_classes.tolist() == [p[2] for p in pairs]
    for (_, q, _), mask, box in zip(pairs, result.pred_masks, result.pred_boxes.tensor, strict=True):
        union = masks[members(predictions.instance_affinity[q])].any(0)
        assert np.array_equal(mask.numpy(), union)
        ys, xs = np.nonzero(union)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("merge", MERGE_RULES)
def test_panoptic_map_pixel_by_pixel(toy: Any, merge: str) -> None:
    patches = toy.patches(10, seed=3)
    predictions = make_predictions(10, semantic=[3, 4], instances=10, seed=3)
    predictions.instance_affinity[4] *= 0.2  # dropped: all affinities are below the threshold
    inference = Inference(
        thing_classes=THINGS, num_classes=CLASSES, overlap_threshold=0.5, semantic_threshold=0.2, merge=merge
    )
    panoptic, segments = inference.panoptic(predictions, patches)

    entities = []
    for q, c in enumerate([3, 4]):
        entities.append((float(predictions.semantic_scores[q]), c, predictions.semantic_affinity[q]))
    for q in range(10):
        score, c = predictions.instance_scores[q, :3].max(0)
        entities.append((float(score), int(c), predictions.instance_affinity[q]))
    entities = [e for e in entities if e[0] > 0.3 and e[2].max() > 0.3]
    masks = patches.decode()
    areas = [0 if merge == "mean" else masks[members(a)].any(0).sum() for _, _, a in entities]
    owner = np.full(panoptic.shape, -1)
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            covering = []
            for i, (score, category, affinity) in enumerate(entities):
                here = [n for n in members(affinity) if masks[n, y, x]]
                total = sum(1 / masks[n].sum() for n in range(10) if masks[n, y, x])
                if merge == "mean":
                    covering.append((score * sum(float(affinity[n]) / masks[n].sum() for n in here), i))
                    areas[i] += bool(here) and sum(1 / masks[n].sum() for n in here) >= 0.5 * total
                elif merge == "nested" and category not in THINGS:
                    behind = [n for n in range(10) if masks[n, y, x]]
                    mean = score * sum(float(affinity[n]) / masks[n].sum() for n in behind) / max(total, 1e-9)
                    if mean > 0.2:
                        covering.append((mean - 1, i))
                elif here:
                    covering.append((score, i))
            if covering and max(covering)[0] != 0:  # 0 by "mean" if only patches of other entities cover the pixel
                owner[y, x] = max(covering)[1]
    expected = {}
    for i, area in enumerate(areas):
        if merge == "nested" and entities[i][1] not in THINGS:
            area = 0
        if (owner == i).sum() >= max(0.5 * area, 1):
            expected[i] = owner == i
    assert len(segments) == len(expected)
    assert 0 < len(expected) < len(entities), "some entities must be kept and some dropped"
    for segment, (i, mask) in zip(segments, expected.items(), strict=True):
        assert segment["category_id"] == entities[i][1]
        assert segment["isthing"] == (entities[i][1] in THINGS)
        assert segment["area"] == mask.sum()
        assert np.array_equal(panoptic.numpy() == segment["id"], mask)
    assert (panoptic.numpy() == 0).sum() == panoptic.numel() - sum(m.sum() for m in expected.values())


def test_entity_with_one_oversized_patch_is_kept() -> None:
    """A patch of the whole image is assigned to class 3 by mistake; the other patches still determine the map."""
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :5], masks[1, 5:], masks[2] = True, True, True
    predictions = Predictions(
        semantic_classes=torch.tensor([3, 4]),
        semantic_scores=torch.tensor([0.9, 0.9]),
        semantic_affinity=torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.0]]),
        instance_scores=torch.zeros(0, CLASSES),
        instance_affinity=torch.zeros(0, 3),
    )
    for merge, kept in (("mean", [(3, 50), (4, 50)]), ("paper", [(4, 50)])):
        inference = Inference(thing_classes=THINGS, num_classes=CLASSES, merge=merge)
        _, segments = inference.panoptic(predictions, Patches.from_masks(masks))
        assert [(s["category_id"], s["area"]) for s in segments] == kept


def test_nested_patches_of_stuff() -> None:
    """Stuff 3 has the left half and, by mistake, the whole image; stuff 4 has the right half; a thing is left."""
    masks = np.zeros((4, 10, 10), bool)
    masks[0, :, :5], masks[1, :, 5:], masks[2], masks[3, 3:7, 1:5] = True, True, True, True
    predictions = Predictions(
        semantic_classes=torch.tensor([3, 4]),
        semantic_scores=torch.tensor([0.9, 0.6]),
        semantic_affinity=torch.tensor([[1.0, 0.0, 0.9, 0.0], [0.0, 1.0, 0.0, 0.0]]),
        instance_scores=torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.0]]),
        instance_affinity=torch.tensor([[0.0, 0.0, 0.0, 1.0]]),
    )
    for merge, kept in (("nested", {(3, 34), (4, 50), (0, 16)}), ("paper", {(3, 100)})):
        inference = Inference(thing_classes=THINGS, num_classes=CLASSES, semantic_threshold=0.3, merge=merge)
        _, segments = inference.panoptic(predictions, Patches.from_masks(masks))
        assert {(s["category_id"], s["area"]) for s in segments} == kept


@pytest.mark.parametrize(
    ("threshold", "small", "large", "kept"),
    [
        (0.8, [0.9, 0.0], [0.8, 0.0], {(0, 10)}),
        (0.8, [0.9, 0.0], [0.0, 0.8], {(0, 10), (1, 80)}),  # of different classes
        (0.8, [0.8, 0.0], [0.9, 0.0], {(0, 89)}),  # the better one is the larger one
        (0.95, [0.9, 0.0], [0.8, 0.0], {(0, 10), (0, 80)}),  # only nine tenths of the smaller one are inside
    ],
)
def test_thing_that_contains_a_better_one(
    threshold: float, small: list[float], large: list[float], kept: set[tuple[int, int]]
) -> None:
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 0], masks[1, :9], masks[1, 0, 0] = True, True, False
    predictions = Predictions(
        semantic_classes=torch.tensor([2]),
        semantic_scores=torch.zeros(1),
        semantic_affinity=torch.ones(1, 2),
        instance_scores=torch.tensor([[*small, 0.0], [*large, 0.0]]),
        instance_affinity=torch.eye(2),
    )
    for merge in ("paper", "mean"):
        inference = Inference(thing_classes=[0, 1], num_classes=3, nested_threshold=threshold, merge=merge)
        _, segments = inference.panoptic(predictions, Patches.from_masks(masks))
        hidden = merge == "mean" and small[0] < large[0]  # by votes, the smaller one is not hidden by the larger one
        assert {(s["category_id"], s["area"]) for s in segments} == (kept if not hidden else {(0, 10), (0, 80)})


def test_top_instances_limits_panoptic_entities(toy: Any) -> None:
    patches = toy.patches(6)
    predictions = make_predictions(6, semantic=[3, 4], instances=6)
    inference = Inference(thing_classes=THINGS, num_classes=CLASSES, top_instances=3, overlap_threshold=0)
    scores = [*predictions.semantic_scores.tolist(), *predictions.instance_scores[:, :3].amax(1).tolist()]
    _, segments = inference.panoptic(predictions, patches)
    assert segments
    assert {s["score"] for s in segments} <= set(sorted(scores)[-3:])


def test_same_instance() -> None:
    predictions = Predictions(
        semantic_classes=torch.tensor([3, 4]),
        semantic_scores=torch.rand(2),
        semantic_affinity=torch.rand(2, 4),
        instance_scores=torch.rand(5, CLASSES),
        instance_affinity=torch.rand(5, 4),
    )
    inference = Inference(thing_classes=THINGS, num_classes=CLASSES)
    low, high = predictions.instance_affinity.amin(1), predictions.instance_affinity.amax(1)
    for classes in ([1], [0, 2]):
        joint = inference.same_instance(predictions, classes)
        for i in range(4):
            for j in range(4):
                by_query = [
                    max(float(predictions.instance_scores[m, c]) for c in classes)
                    * math.prod(
                        float((predictions.instance_affinity[m, n] - low[m]) / (high[m] - low[m])) for n in (i, j)
                    )
                    for m in range(5)
                ]
                assert joint[i, j] == pytest.approx(max(by_query), abs=1e-5)


@pytest.mark.parametrize("merge", MERGE_RULES)
def test_image_without_patches(merge: str) -> None:
    patches = Patches.empty(10, 12)
    result = Inference(thing_classes=THINGS, num_classes=CLASSES, merge=merge)(
        make_predictions(0, semantic=[3, 4], instances=0), patches
    )
    assert (result["sem_seg"] == -1).all()
    assert len(result["instances"]) == 0
    assert result["panoptic_seg"][1] == []
    assert result["instances"].pred_masks.tensor.shape == (0, 10, 12)
    inference = Inference(thing_classes=THINGS, num_classes=CLASSES)
    assert inference.same_instance(make_predictions(0, semantic=[3], instances=0), [0]).shape == (0, 0)


def test_vocabulary_without_things(toy: Any) -> None:
    patches = toy.patches(4)
    result = Inference(thing_classes=[], num_classes=CLASSES)(make_predictions(4, semantic=[3], instances=0), patches)
    assert len(result["instances"]) == 0


def test_disabled_outputs_are_omitted(toy: Any) -> None:
    inference = Inference(thing_classes=THINGS, num_classes=CLASSES, semantic_on=False, panoptic_on=False)
    assert inference(make_predictions(4, semantic=[3], instances=4), toy.patches(4)).keys() == {"instances"}


@pytest.mark.parametrize(("merge", "threshold"), [("nested", 0.5), ("paper", 0.0)])
def test_semantic_map_of_low_scores(merge: str, threshold: float) -> None:
    """Patches 0 to 2 are rows of an image; the third has an uncertain class."""
    masks = np.zeros((3, 3, 4), bool)
    masks[[0, 1, 2], [0, 1, 2]] = True
    predictions = Predictions(
        semantic_classes=torch.tensor([0, 1]),
        semantic_scores=torch.tensor([0.9, 0.2]),
        semantic_affinity=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        instance_scores=torch.zeros(0, 2),
        instance_affinity=torch.zeros(0, 3),
    )
    inference = Inference(thing_classes=[], num_classes=2, merge=merge, semantic_threshold=0.5)
    found = inference.semantic(predictions, Patches.from_masks(masks))[:, 0].tolist()
    assert found == [0, UNLABELED, UNLABELED if threshold else 1]
