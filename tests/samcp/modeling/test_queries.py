"""Denoising queries, and visibility between queries."""

from typing import Any

import pytest
import torch

from samcp.modeling.denoising import DenoisingQueries, make_denoising_queries
from samcp.modeling.queries import query_visibility

BOXES = torch.tensor([[[0.2, 0.2, 0.6, 0.8], [0.5, 0.1, 0.9, 0.3]], [[0.1, 0.1, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0]]])
CLASSES = torch.tensor([[4, 7], [5, 0]])
VALID = torch.tensor([[True, True], [True, False]])


def make(**changes: Any) -> DenoisingQueries:
    options: dict[str, Any] = {"max_queries": 13, "label_noise": 0.5, "box_noise": 1.0} | changes
    pool = torch.tensor([4, 5, 7])
    return make_denoising_queries(classes=CLASSES, boxes=BOXES, valid=VALID, label_pool=pool, **options)


def test_number_of_denoising_groups() -> None:
    queries = make()
    assert queries.labels.shape == (2, 12), "three groups of 2 x 2 queries fit into 13"
    assert queries.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert queries.entity.tolist() == [0, 1] * 6
    assert queries.positive.tolist() == [True, True, False, False] * 3
    assert queries.valid[1].tolist() == [True, False] * 6, "the second image has one instance"


def test_at_least_one_denoising_group() -> None:
    assert make(max_queries=1).labels.shape == (2, 4)


def test_positives_without_noise_equal_ground_truth() -> None:
    queries = make(label_noise=0.0, box_noise=0.0)
    assert queries.labels[0].tolist() == [4, 7] * 6
    assert torch.equal(queries.boxes[0, :2], BOXES[0])


def test_noised_boxes_are_valid() -> None:
    torch.manual_seed(0)
    boxes = make(max_queries=4000).boxes
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


@pytest.mark.parametrize("noise", [1.0, 0.4])
def test_box_noise_of_positives_and_negatives(noise: float) -> None:
    """Each side moves by up to half the box size for positives, and by half to the whole box size for negatives."""
    torch.manual_seed(0)
    box = torch.tensor([0.4, 0.3, 0.5, 0.6])  # even a negative's sides stay inside the image
    queries = make_denoising_queries(
        classes=torch.tensor([[4]]),
        boxes=box[None, None],
        valid=torch.tensor([[True]]),
        label_pool=torch.tensor([4]),
        max_queries=4000,
        label_noise=0.0,
        box_noise=noise,
    )
    half_size = torch.tensor([0.05, 0.15])
    outwards = torch.stack([box[:2] - queries.boxes[0, :, :2], queries.boxes[0, :, 2:] - box[2:]]) / (noise * half_size)
    # If both sides of a negative move inwards, they may cross, and their noise cannot be recovered.
    kept = (outwards > 0).any(0)
    for positive, least in ((True, 0), (False, 1)):
        chosen = kept & (queries.positive == positive)[:, None]
        for side in (0, 1):
            for axis in (0, 1):
                moves = outwards[side, chosen[:, axis], axis]
                assert moves.abs().min() == pytest.approx(least, abs=0.01)
                assert moves.abs().max() == pytest.approx(least + 1, abs=0.01)
                # Two of the three remaining cases (this side moves outwards, the other, both) move this side outwards.
                assert (moves > 0).double().mean().item() == pytest.approx(2 / 3, abs=0.05)


def test_label_noise() -> None:
    torch.manual_seed(0)
    queries = make(max_queries=8000)
    changed = (queries.labels[1] != 5)[queries.valid[1]].float().mean().item()
    assert abs(changed - 0.25 * 2 / 3) < 0.02, "a quarter is redrawn from three classes, one of them the same"


def test_no_denoising_queries_without_instances() -> None:
    queries = make_denoising_queries(
        classes=torch.zeros(1, 0, dtype=torch.long),
        boxes=torch.zeros(1, 0, 4),
        valid=torch.zeros(1, 0, dtype=torch.bool),
        label_pool=torch.zeros(0, dtype=torch.long),
        max_queries=10,
        label_noise=0.5,
        box_noise=1.0,
    )
    assert queries.labels.shape == (1, 0)


def test_query_visibility() -> None:
    """Compare instance and denoising queries with an enumeration; test_literal_network covers semantic queries."""
    queries = make()
    valid = torch.tensor([[True, True, True], [True, False, False]])
    visible = query_visibility(2, 3, valid, queries)
    kinds = ["semantic"] * 2 + ["instance"] * 3 + ["denoising"] * 12
    for image in range(2):
        for m, kind in list(enumerate(kinds))[2:]:
            for n, other in enumerate(kinds):
                if m == n:
                    expected = True
                elif other == "instance":
                    expected = bool(valid[image, n - 2])
                elif other == "semantic":
                    expected = kind == "denoising"
                else:
                    same = kind == "denoising" and queries.group[m - 5] == queries.group[n - 5]
                    expected = bool(same and queries.valid[image, n - 5])
                assert visible[image, m - 2, n] == expected, (image, m, kind, n, other)
