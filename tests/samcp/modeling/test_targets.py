"""Training targets of queries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from samcp.modeling.affinity_decoder import DecoderOutput
from samcp.modeling.denoising import DenoisingQueries, make_denoising_queries
from samcp.modeling.matcher import HungarianMatcher
from samcp.modeling.patch_batch import PatchBatch
from samcp.modeling.queries import QuerySet
from samcp.modeling.targets import Entities, QueryTargets, TargetBuilder, gather_entities, gather_in_crowd

NUM_CLASSES, SEMANTIC, THINGS = 5, torch.tensor([3, 4]), torch.tensor([0, 1, 2])
MATCHER = HungarianMatcher(cls=2, mask_focal=1, dice=1, l1=1, giou=1)


def build(
    image: dict,
    *,
    self_affinity: bool = True,
    thing_loss_only: bool = True,
    matched: dict[int, int] | None = None,
) -> QueryTargets:
    """Return targets of one image.

    Args:
        matched: entity to the instance query that predicts its patches and box, and is therefore matched to it.
    """
    patches = PatchBatch.from_instances([image["patches"]], 7, torch.device("cpu"))
    num = patches.valid.shape[1]
    affinity = torch.full((1, len(SEMANTIC) + num, num), -4.0)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, len(SEMANTIC) + num, 4).clone()
    for k, q in (matched or {}).items():
        affinity[0, len(SEMANTIC) + q] = torch.where(image["instances"].gt_affinity[k], 6.0, -6.0)
        boxes[0, len(SEMANTIC) + q] = image["instances"].gt_boxes.tensor[k] / patches.scale[0]
    builder = TargetBuilder(matcher=MATCHER, self_affinity=self_affinity, thing_loss_only=thing_loss_only)
    [targets] = build_batch(builder, [image], [DecoderOutput(torch.zeros(0), affinity, boxes)])
    return targets


def build_batch(
    builder: TargetBuilder, images: list[dict], outputs: list[DecoderOutput], class_logits: list[Tensor] | None = None
) -> list[QueryTargets]:
    """Return the targets of the semantic and instance queries of a batch, one per layer."""
    patches = PatchBatch.from_instances([image["patches"] for image in images], 7, torch.device("cpu"))
    batch, num = patches.valid.shape
    total = len(SEMANTIC) + num
    semantic = builder.semantic(
        semantic_classes=SEMANTIC,
        regions=gather_entities([image["sem_segments"] for image in images], patches, min_box_iou=None),
        patches=patches,
        num_classes=NUM_CLASSES,
    )
    by_layer = builder.instance(
        outputs=outputs,
        class_logits=class_logits or [torch.zeros(batch, total, NUM_CLASSES)] * len(outputs),
        queries=QuerySet(torch.zeros(0), torch.zeros(0), torch.zeros(0), len(SEMANTIC), num),
        thing_classes=THINGS,
        patches=patches,
        in_crowd=gather_in_crowd([image["patches"] for image in images], patches),
        instances=gather_entities([image["instances"] for image in images], patches, min_box_iou=0.5),
    )
    return [
        QueryTargets(
            **{name: torch.cat([value, getattr(instance, name)], dim=1) for name, value in vars(semantic).items()}
        )
        for instance in by_layer
    ]


def add_noise(instances: Entities, *, max_queries: int, label_noise: float) -> DenoisingQueries:
    """Return denoising queries of the instances."""
    return make_denoising_queries(
        classes=instances.classes,
        boxes=instances.boxes,
        valid=instances.valid,
        label_pool=THINGS,
        max_queries=max_queries,
        label_noise=label_noise,
        box_noise=1.0,
    )


def test_matched_query(toy: Any) -> None:
    image = toy.input(6, {1: [0, 2], 2: [4], 3: [5]})
    targets = build(image, matched={0: 2, 1: 4})
    row = len(SEMANTIC) + 2
    assert targets.classes[0, row].tolist() == [0, 1, 0, 0, 0]
    assert targets.affinity[0, row].tolist() == [1, 0, 1, 0, 0, 0]
    assert targets.positive[0].nonzero().squeeze(1).tolist() == [0, row, len(SEMANTIC) + 4]


def test_unmatched_query(toy: Any) -> None:
    image = toy.input(6, {1: [0, 2]})
    row = len(SEMANTIC) + 5
    with_bg, without = (build(image, matched={0: 2}, self_affinity=on) for on in (True, False))
    assert with_bg.affinity[0, row].tolist() == [0, 0, 0, 0, 0, 1]
    assert with_bg.affinity_weights[0, row].sum() == 6
    assert with_bg.classes[0, row].sum() == 0
    assert with_bg.class_weights[0, row].tolist() == [1, 1, 1, 0, 0], "its target is no thing class"
    assert without.affinity_weights[0, row].sum() == 0


def test_semantic_query(toy: Any) -> None:
    targets = build(toy.input(6, {1: [0], 3: [1, 5]}))
    assert targets.class_weights[0, 0].tolist() == [0, 0, 0, 1, 0]
    assert targets.classes[0, 0, 3] == 1
    assert targets.affinity[0, 0].tolist() == [0, 1, 0, 0, 0, 1]
    assert targets.class_weights[0, 1].tolist() == [0, 0, 0, 0, 1], "an absent class is a negative"
    assert targets.classes[0, 1].sum() == 0
    assert targets.affinity_weights[0, 1].sum() == 0, "an absent class has no affinity loss"


def test_class_without_patches_has_no_class_loss(toy: Any) -> None:
    targets = build(toy.input(6, {3: [], 4: [1]}))
    assert targets.class_weights[0, 0].sum() == 0
    assert targets.class_weights[0, 1].tolist() == [0, 0, 0, 0, 1]


def test_weights_of_ignored_pairs(toy: Any) -> None:
    image = toy.input(4, {1: [0, 1]})
    image["instances"].gt_ignore[0] = torch.tensor([True, False, False, True])
    row = len(SEMANTIC)
    targets = build(image, matched={0: 0})
    assert targets.affinity_weights[0, row].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("reason", ["no patch", "patches elsewhere"])
def test_unbuildable_entity_has_no_loss(toy: Any, reason: str) -> None:
    image = toy.input(4, {1: [0, 1]})
    if reason == "no patch":
        image["instances"].gt_affinity[:] = False
    else:
        image["instances"].gt_boxes.tensor[:] = torch.tensor([90.0, 60.0, 95.0, 63.0])
    targets = build(image)
    assert not targets.positive[0, len(SEMANTIC) :].any()
    without_loss = targets.class_weights[0, len(SEMANTIC) :].sum(-1) == 0
    assert without_loss.sum() == 1, "the query matched to the entity has no loss"
    assert targets.affinity_weights[0, len(SEMANTIC) :][without_loss].sum() == 0


def test_unmatched_query_in_a_crowd_has_no_loss(toy: Any) -> None:
    image = toy.input(4, {1: [0]})
    image["patches"].in_crowd[3] = True
    targets = build(image, matched={0: 0})
    outside, inside = len(SEMANTIC) + 2, len(SEMANTIC) + 3
    assert targets.class_weights[0, outside].sum() == len(THINGS)
    assert targets.class_weights[0, inside].sum() == 0
    assert targets.self_affinity[0, outside]
    assert not targets.self_affinity[0, inside]


def test_image_without_patches_has_no_loss(toy: Any) -> None:
    image = toy.input(0, {})
    image["sem_segments"] = toy.entities(image["patch_rles"], {})
    targets = build(image)
    assert targets.class_weights.sum() == 0
    assert targets.affinity_weights.sum() == 0


def test_denoising_targets(toy: Any) -> None:
    image = toy.input(5, {0: [1], 2: [3, 4]})
    patches = PatchBatch.from_instances([image["patches"]], 7, torch.device("cpu"))
    instances = gather_entities([image["instances"]], patches, min_box_iou=0.5)
    noised = add_noise(instances, max_queries=8, label_noise=1.0)
    targets = TargetBuilder(matcher=MATCHER).denoising(
        denoising=noised, patches=patches, instances=instances, num_classes=NUM_CLASSES, thing_classes=THINGS
    )
    for slot in range(8):
        entity, positive = int(noised.entity[slot]), bool(noised.positive[slot])
        expected = torch.zeros(NUM_CLASSES)
        if positive:
            expected[instances.classes[0, entity]] = 1
        assert torch.equal(targets.classes[0, slot], expected)
        assert torch.equal(targets.affinity[0, slot], instances.affinity[0, entity] * positive)
        assert targets.class_weights[0, slot].sum() == len(THINGS)
        assert bool(targets.affinity_weights[0, slot].any()) == positive


def test_denoising_queries_of_unbuildable_entities_keep_their_class_loss(toy: Any) -> None:
    image = toy.input(5, {0: [1], 2: [3, 4]})
    image["instances"].gt_affinity[0] = False  # no patch belongs to the first entity
    patches = PatchBatch.from_instances([image["patches"]], 7, torch.device("cpu"))
    instances = gather_entities([image["instances"]], patches, min_box_iou=0.5)
    noised = add_noise(instances, max_queries=4, label_noise=0.5)
    targets = TargetBuilder(matcher=MATCHER).denoising(
        denoising=noised, patches=patches, instances=instances, num_classes=NUM_CLASSES, thing_classes=THINGS
    )
    [slot] = (noised.positive & (noised.entity == 0)).nonzero()[:, 0].tolist()
    assert targets.class_weights[0, slot].tolist() == [1, 1, 1, 0, 0]
    assert targets.classes[0, slot].tolist() == [1, 0, 0, 0, 0]
    assert not targets.affinity_weights[0, slot].any()
    assert not targets.positive[0, slot]


def test_denoising_targets_of_padding_and_of_images_without_patches(toy: Any) -> None:
    images = [toy.input(5, {0: [1], 2: [3, 4]}), toy.input(4, {1: [0]}), toy.input(0, {})]
    images[2]["instances"] = toy.entities(images[2]["patch_rles"], {0: []})
    patches = PatchBatch.from_instances([image["patches"] for image in images], 7, torch.device("cpu"))
    instances = gather_entities([image["instances"] for image in images], patches, min_box_iou=0.5)
    noised = add_noise(instances, max_queries=4, label_noise=0.5)
    targets = TargetBuilder(matcher=MATCHER).denoising(
        denoising=noised, patches=patches, instances=instances, num_classes=NUM_CLASSES, thing_classes=THINGS
    )
    supervised = targets.class_weights.any(-1)
    assert supervised.tolist() == [[True] * 4, [True, False] * 2, [False] * 4]
    assert targets.positive.tolist() == [[True, True, False, False], [True, False, False, False], [False] * 4]


def test_batch_without_instances_has_no_denoising_queries(
    toy: Any, toy_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    criterion = toy_model.criterion
    monkeypatch.setattr(toy_model, "criterion", lambda **inputs: given.update(inputs) or criterion(**inputs))
    losses = toy_model([toy.input(5, {3: [1, 2]})])
    assert given["denoising"].labels.shape == (1, 0)
    assert losses["loss_cls_dn"] == 0


def test_semantic_queries_of_things(toy: Any) -> None:
    """An image with fewer regions than the other has padding, whose class 0 is not in the image."""
    images = [toy.input(6, {0: [1], 1: [2]}), toy.input(6, {3: [0]})]
    patches = PatchBatch.from_instances([image["patches"] for image in images], 7, torch.device("cpu"))
    targets = TargetBuilder(matcher=MATCHER).semantic(
        semantic_classes=torch.arange(NUM_CLASSES),
        regions=gather_entities([image["sem_segments"] for image in images], patches, min_box_iou=None),
        patches=patches,
        num_classes=NUM_CLASSES,
    )
    assert torch.equal(targets.class_weights, torch.eye(NUM_CLASSES).expand(2, -1, -1))
    assert targets.positive.nonzero().tolist() == [[0, 0], [0, 1], [1, 3]]


def test_thing_loss_only(toy: Any) -> None:
    image = toy.input(6, {1: [0, 2]})
    unmatched = len(SEMANTIC) + 5
    assert build(image, matched={0: 2}).class_weights[0, unmatched].tolist() == [1, 1, 1, 0, 0]
    all_classes = build(image, matched={0: 2}, thing_loss_only=False)
    assert all_classes.class_weights[0, unmatched].tolist() == [1, 1, 1, 1, 1]
    assert all_classes.class_weights[0, 0].tolist() == [0, 0, 0, 1, 0], "a semantic query keeps its own class"


def test_batch_equals_single_images(toy: Any) -> None:
    """Padding of patches and entities does not change the targets, in any layer."""
    images = [
        toy.input(6, {0: [1, 2], 1: [4], 2: [0, 5], 3: [3]}, seed=1),
        toy.input(0, {}),
        toy.input(9, {1: [0, 8], 4: [2, 3]}, seed=2),
        toy.input(4, {}, seed=3),
        toy.input(2, {0: [0], 1: [1], 2: []}, seed=4),
    ]
    images[2]["patches"].in_crowd[5] = True
    torch.manual_seed(0)
    most, first = 9, len(SEMANTIC)
    logits = [torch.randn(len(images), first + most, NUM_CLASSES) for _ in range(3)]
    outputs = [
        DecoderOutput(torch.zeros(0), 3 * torch.randn(len(images), first + most, most), random_boxes(first + most))
        for _ in range(3)
    ]
    builder = TargetBuilder(matcher=MATCHER)
    together = build_batch(builder, images, outputs, logits)
    for i, image in enumerate(images):
        num = len(image["patches"])
        rows, columns = slice(first + max(num, 1)), slice(max(num, 1))
        single = build_batch(
            builder,
            [image],
            [
                DecoderOutput(o.queries, o.affinity_logits[i : i + 1, rows, columns], o.boxes[i : i + 1, rows])
                for o in outputs
            ],
            [x[i : i + 1, rows] for x in logits],
        )
        for ours, expected in zip(together, single, strict=True):
            for name, value in vars(expected).items():
                padded = getattr(ours, name)[i]
                shape = [slice(size) for size in value.shape[1:]]
                assert torch.equal(padded[tuple(shape)], value[0]), (i, name)
                assert padded.sum() == value.sum(), "padding has no target and no weight"
    assert together[0].positive[:, first:].any(-1).tolist() == [True, False, True, False, True]
    assert not torch.equal(together[0].positive, together[1].positive), "layers are matched separately"


def random_boxes(rows: int) -> Tensor:
    """Return XYXY boxes (5, rows, 4)."""
    corners = torch.rand(5, rows, 2, 2)
    return torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
