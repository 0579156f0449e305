"""Affinity targets against a literal implementation of METHOD 6 on decoded masks."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from proposal_cache import Patches
from samcp.data.affinity_targets import AffinityRule, Entities, TargetRules, build_targets
from samcp.data.ground_truth import GroundTruth
from samcp.data.patch_transforms import AxisAlignedMap, crop_patches

HEIGHT, WIDTH = 48, 64
SIZE = (HEIGHT, WIDTH)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def patches_of(*masks):
    return Patches.from_masks(np.stack(masks)) if masks else Patches.empty(*SIZE)


def ground_truth_of(*segments):
    """Return ground truth of segments (mask, class, is_thing, is_crowd)."""
    return GroundTruth(
        patches_of(*(s[0] for s in segments)),
        np.array([s[1] for s in segments], dtype=np.int64),
        np.array([s[2] for s in segments], dtype=bool),
        np.array([s[3] for s in segments], dtype=bool),
    )


def identity():
    return AxisAlignedMap.from_transforms(T.NoOpTransform(), SIZE, SIZE)


def tight_box(mask):
    ys, xs = np.nonzero(mask)
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(ys) else (0, 0, 0, 0)


def box_as_mask(mask):
    x0, y0, x1, y1 = tight_box(mask)
    filled = np.zeros_like(mask)
    filled[y0:y1, x0:x1] = True
    return filled


def compare(rule, patches, entities):
    members = np.eye(len(entities), dtype=bool)
    return rule.compare(patches, Entities.of_segments(members, np.arange(len(entities)), entities, patches))


def literal_affinity(
    patches,
    entities,
    tau=0.8,
    ignore_from=0.5,
    box=True,
    mask=True,
    low_quality=True,
    low_quality_iou=0.5,
    by_mask=False,
):
    """Compute affinity and ignored pairs by METHOD 6, with loops over decoded masks."""
    affinity = np.zeros((len(entities), len(patches)), dtype=bool)
    ignore = np.zeros_like(affinity)
    for k, entity in enumerate(entities):
        for n, patch in enumerate(patches):
            iops = []
            if mask:
                iops.append((entity & patch).sum() / patch.sum())
            if box:
                iops.append((box_as_mask(entity) & box_as_mask(patch)).sum() / box_as_mask(patch).sum())
            affinity[k, n] = min(iops) > tau
            ignore[k, n] = ignore_from is not None and ignore_from <= min(iops) <= tau
        if low_quality and len(patches):
            shape = (lambda x: x) if by_mask else box_as_mask
            ious = [(shape(entity) & shape(p)).sum() / (shape(entity) | shape(p)).sum() for p in patches]
            best = max((iou for n, iou in enumerate(ious) if affinity[k, n]), default=0)
            for n, iou in enumerate(ious):
                if iou > max(best, low_quality_iou):
                    affinity[k, n], ignore[k, n] = True, False
    return affinity, ignore


def random_masks(rng, count):
    """Return random boxes with holes, some of them overlapping."""
    masks = []
    for _ in range(count):
        w, h = rng.integers(3, 40), rng.integers(3, 30)
        x, y = rng.integers(0, WIDTH - w + 1), rng.integers(0, HEIGHT - h + 1)
        masks.append(box_mask(x, y, x + w, y + h) & (rng.random(SIZE) < rng.choice([0.4, 0.9, 1.0])))
    return [mask for mask in masks if mask.any()]


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"box": False},
        {"mask": False},
        {"low_quality": False},
        {"tau": 0.6, "ignore_from": 0.3},
        {"ignore_from": None, "low_quality_iou": 0.1, "by_mask": True},
    ],
)
def test_equals_loops_over_decoded_masks(switches):
    rng = np.random.default_rng(0)
    names = {"tau": "iop_threshold", "ignore_from": "ignore_threshold", "box": "box_iop", "mask": "mask_iop"}
    names |= {"low_quality": "low_quality_matches", "low_quality_iou": "low_quality_iou"}
    options = {names[name]: value for name, value in switches.items() if name in names}
    rule = AffinityRule(**options, low_quality_by="mask" if switches.get("by_mask") else "box")
    positives = 0
    for _ in range(20):
        patches, entities = random_masks(rng, 30), random_masks(rng, 8)
        affinity, ignore = compare(rule, patches_of(*patches), patches_of(*entities))
        expected_affinity, expected_ignore = literal_affinity(patches, entities, **switches)
        np.testing.assert_array_equal(affinity, expected_affinity)
        np.testing.assert_array_equal(ignore, expected_ignore)
        positives += affinity.sum()
    assert positives > 50


def test_positive_ignored_and_negative():
    entity = box_mask(0, 0, 20, 20)
    inside, mostly, little = box_mask(2, 2, 12, 12), box_mask(14, 0, 24, 10), box_mask(18, 0, 28, 10)
    affinity, ignore = compare(AffinityRule(), patches_of(inside, mostly, little), patches_of(entity))
    assert affinity.tolist() == [[True, False, False]]
    assert ignore.tolist() == [[False, True, False]]


def test_low_quality_match_of_an_object_without_patches():
    entity, loose = box_mask(10, 10, 30, 30), box_mask(10, 10, 30, 40)  # IoP 2/3, IoU 2/3
    affinity, ignore = compare(AffinityRule(), patches_of(loose), patches_of(entity))
    assert affinity.tolist() == [[True]]
    assert ignore.tolist() == [[False]]
    affinity, ignore = compare(AffinityRule(low_quality_matches=False), patches_of(loose), patches_of(entity))
    assert affinity.tolist() == [[False]]
    assert ignore.tolist() == [[True]]


def test_low_quality_match_must_exceed_assigned_patches():
    entity, exact, loose = box_mask(10, 10, 30, 30), box_mask(10, 10, 30, 29), box_mask(10, 10, 30, 40)
    affinity, _ = compare(AffinityRule(), patches_of(exact, loose), patches_of(entity))
    assert affinity.tolist() == [[True, False]]


def test_patches_inside_a_crowd_are_ignored():
    crowd, other = box_mask(0, 0, 30, 30), box_mask(40, 0, 60, 30)
    truth = ground_truth_of((crowd, 0, True, True), (other, 1, True, False))
    patches = patches_of(box_mask(5, 5, 15, 15), box_mask(42, 5, 50, 15), box_mask(28, 0, 38, 10))
    targets = build_targets(patches, truth, rules=TargetRules(), mapping=identity())
    assert targets.in_crowd.tolist() == [True, False, False]
    assert targets.instances.gt_classes.tolist() == [1]
    assert targets.instances.gt_affinity.tolist() == [[False, True, False]]
    assert targets.instances.gt_ignore.tolist() == [[True, False, False]]
    assert targets.sem_segments.gt_classes.tolist() == [1, 0]
    assert targets.sem_segments.gt_affinity.tolist() == [[False, True, False], [False, False, False]]
    assert targets.sem_segments.gt_ignore[0].tolist() == [True, False, False]


def test_class_with_a_crowd_and_other_segments():
    crowd, one = box_mask(0, 0, 30, 30), box_mask(40, 0, 60, 30)
    truth = ground_truth_of((crowd, 0, True, True), (one, 0, True, False))
    targets = build_targets(patches_of(one), truth, rules=TargetRules(), mapping=identity())
    assert targets.sem_segments.gt_classes.tolist() == [0]
    assert targets.sem_segments.gt_affinity.tolist() == [[True]]


def test_semantic_entities_merge_the_segments_of_a_class():
    left, right, sky = box_mask(0, 20, 20, 40), box_mask(30, 20, 50, 40), box_mask(0, 0, 64, 10)
    truth = ground_truth_of((right, 3, True, False), (sky, 7, False, False), (left, 3, True, False))
    targets = build_targets(patches_of(left, right, sky), truth, rules=TargetRules(), mapping=identity())
    assert targets.sem_segments.gt_classes.tolist() == [3, 7]
    assert targets.sem_segments.gt_affinity.tolist() == [[True, True, False], [False, False, True]]
    assert targets.sem_segments.gt_boxes.tensor.tolist() == [[0, 20, 50, 40], [0, 0, 64, 10]]
    assert targets.instances.gt_classes.tolist() == [3, 3]  # stuff has no instances
    assert targets.instances.gt_affinity.tolist() == [[False, True, False], [True, False, False]]


def augmented(mask, transforms):
    return transforms.apply_segmentation(mask.astype(np.uint8)).astype(bool)


def test_crop_and_flip_equal_augmented_masks():
    """At integer scales, targets computed from RLEs equal targets computed from augmented masks."""
    rng = np.random.default_rng(1)
    transforms = T.TransformList(
        [
            T.HFlipTransform(WIDTH),
            T.ResizeTransform(HEIGHT, WIDTH, 2 * HEIGHT, 2 * WIDTH),
            T.CropTransform(20, 10, 70, 60),
        ]
    )
    mapping = AxisAlignedMap.from_transforms(transforms, SIZE, (60, 70))
    for _ in range(10):
        masks, entities = random_masks(rng, 20), random_masks(rng, 5)
        truth = ground_truth_of(*((mask, k, True, False) for k, mask in enumerate(entities)))
        patches = crop_patches(patches_of(*masks), mapping, min_area=1)
        targets = build_targets(patches, truth, rules=TargetRules(), mapping=mapping)

        seen_patches = [m for m in (augmented(mask, transforms) for mask in masks) if m.any()]
        seen = [(k, m) for k, m in enumerate(augmented(mask, transforms) for mask in entities) if m.any()]
        expected_affinity, expected_ignore = literal_affinity(seen_patches, [m for _, m in seen])
        assert targets.instances.gt_classes.tolist() == [k for k, _ in seen]
        np.testing.assert_array_equal(targets.instances.gt_affinity.numpy(), expected_affinity)
        np.testing.assert_array_equal(targets.instances.gt_ignore.numpy(), expected_ignore)
        np.testing.assert_allclose(targets.instances.gt_boxes.tensor.numpy(), [tight_box(m) for _, m in seen])


def test_crop_can_make_a_patch_positive():
    """Overlaps are computed on the visible part; here the crop removes the half of the patch outside the object."""
    entity, patch = box_mask(0, 0, 20, 20), box_mask(0, 0, 40, 20)
    transforms = T.TransformList([T.CropTransform(0, 0, 20, 20)])
    mapping = AxisAlignedMap.from_transforms(transforms, SIZE, (20, 20))
    truth = ground_truth_of((entity, 0, True, False))
    rules = TargetRules(instances=AffinityRule(low_quality_matches=False))
    whole = build_targets(patches_of(patch), truth, rules=rules, mapping=identity())
    cut = build_targets(crop_patches(patches_of(patch), mapping, 1), truth, rules=rules, mapping=mapping)
    assert whole.instances.gt_affinity.tolist() == [[False]]
    assert cut.instances.gt_affinity.tolist() == [[True]]


@pytest.mark.parametrize(("num_patches", "num_entities"), [(0, 2), (3, 0), (0, 0)])
def test_no_patches_or_no_entities(num_patches, num_entities):
    masks = [box_mask(i, i, i + 10, i + 10) for i in range(3)]
    truth = ground_truth_of(*((mask, 0, True, False) for mask in masks[:num_entities]))
    targets = build_targets(patches_of(*masks[:num_patches]), truth, rules=TargetRules(), mapping=identity())
    assert targets.instances.gt_affinity.shape == (num_entities, num_patches)
    assert targets.sem_segments.gt_affinity.shape == (min(num_entities, 1), num_patches)
    assert targets.in_crowd.shape == (num_patches,)
    assert targets.instances.gt_affinity.dtype == torch.bool


def test_rule_without_overlap_is_rejected():
    with pytest.raises(ValueError, match="BOX_IOP and MASK_IOP"):
        AffinityRule(box_iop=False, mask_iop=False)
