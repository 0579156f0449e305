"""RLE operations compared with the same operations on decoded masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from proposal_cache import rle
from proposal_cache.errors import MaskError
from tests.proposal_cache.random_masks import random_masks

SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (40, 61), (300, 211)]


@pytest.fixture(params=SIZES, ids=str)
def masks(request: pytest.FixtureRequest) -> np.ndarray:
    return random_masks(15, *request.param)


def test_round_trip(masks: np.ndarray) -> None:
    h, w = masks.shape[1:]
    assert np.array_equal(rle.decode(rle.encode(masks), h, w), masks)
    assert rle.decode([], h, w).shape == (0, h, w)


def test_runs_end_where_the_mask_changes(masks: np.ndarray) -> None:
    h, w = masks.shape[1:]
    runs = rle.decode_runs(rle.encode(masks), h, w)
    for i, mask in enumerate(masks):
        flat = mask.ravel(order="F")
        expected = [0] if flat[0] else []
        expected += [*(np.flatnonzero(np.diff(flat)) + 1), h * w]
        assert runs.ends[runs.first[i] : runs.first[i + 1]].tolist() == expected


def test_area_and_box(masks: np.ndarray) -> None:
    h, w = masks.shape[1:]
    rles = rle.encode(masks)
    areas, boxes = rle.area_and_box(rles, h, w)
    assert rle.area(rles, h, w).tolist() == areas.tolist() == masks.sum((1, 2)).tolist()
    for mask, found in zip(masks, boxes, strict=True):
        ys, xs = np.nonzero(mask)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        assert found.tolist() == expected


def test_overlaps(masks: np.ndarray) -> None:
    h, w = masks.shape[1:]
    others = random_masks(10, h, w, seed=1)
    inter = np.einsum("nhw,mhw->nm", masks.astype(float), others.astype(float))
    a, b = masks.sum((1, 2))[:, None], others.sum((1, 2))[None]
    rles, other_rles = rle.encode(masks), rle.encode(others)
    with np.errstate(invalid="ignore"):
        iop, iou = np.nan_to_num(inter / a), np.nan_to_num(inter / (a + b - inter))
    np.testing.assert_allclose(rle.iop(rles, other_rles, h, w), iop, atol=1e-12)
    np.testing.assert_allclose(rle.iou(rles, other_rles, h, w), iou, atol=1e-12)


def test_union(masks: np.ndarray) -> None:
    n, h, w = masks.shape
    groups: list[list[int]] = [[0, 1], [], [4], list(range(n)), [2, 2]]
    expected = [masks[g].any(0) if g else np.zeros((h, w), bool) for g in groups]
    assert rle.union(rle.encode(masks), groups, h, w) == rle.encode(np.array(expected))


@pytest.mark.parametrize(
    "where", [(0, 0, 1, 1), (0.2, 0.2, 0.8, 0.6), (0.5, 0, 0.9, 1), (-1, 0.4, 2, 0.7), (2, 2, 3, 3)]
)
def test_crop(masks: np.ndarray, where: tuple[float, ...]) -> None:
    h, w = masks.shape[1:]
    x0, y0, x1, y1 = np.rint(np.array(where) * [w, h, w, h]).astype(int)
    kept = np.zeros((h, w), bool)
    kept[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    assert rle.crop(rle.encode(masks), (x0, y0, x1, y1), h, w) == rle.encode(masks & kept)


def test_paste(masks: np.ndarray) -> None:
    n, h, w = masks.shape
    expected = np.zeros((n, h + 6, w + 2), bool)
    expected[:, 3 : 3 + h, 2:] = masks
    assert rle.paste(rle.encode(masks), h, w, 2, 3, h + 6, w + 2) == rle.encode(expected)
    with pytest.raises(MaskError, match=f"is not inside an image of {h + 6} x {w + 2}"):
        rle.paste(rle.encode(masks), h, w, 3, 3, h + 6, w + 2)


def test_encode_labels(masks: np.ndarray) -> None:
    n = len(masks)
    labels = (masks * np.arange(1, n + 1)[:, None, None]).max(0) - 3
    ids, rles = rle.encode_labels(labels)
    assert ids.tolist() == np.unique(labels).tolist()
    assert rles == rle.encode(labels == ids[:, None, None])


def test_contains(masks: np.ndarray) -> None:
    n, h, w = masks.shape
    points = np.random.default_rng(2).integers(0, h * w, (n, 50))
    found = rle.contains(rle.decode_intervals(rle.encode(masks), h, w), points, h * w)
    assert (found == masks[np.arange(n)[:, None], points % h, points // h]).all()


def test_runs_of_length_zero_are_accepted() -> None:
    """Some encoders write them: 2 background, 0 foreground, 1 background, 3 foreground."""
    rles = [bytes(c + 48 for c in (2, 0, 1, 3))]
    areas, boxes = rle.area_and_box(rles, 2, 3)
    assert (areas.tolist(), boxes.tolist()) == ([3], [[1, 0, 3, 2]])
    assert rle.crop(rles, (0, 0, 3, 2), 2, 3) == rle.encode(rle.decode(rles, 2, 3))


def test_no_masks() -> None:
    assert len(rle.area([], 3, 4)) == len(rle.crop([], (0, 0, 1, 1), 3, 4)) == 0
    rle.check([], 3, 4)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (b"", "empty counts"),
        (b"\x00", "characters"),
        (b"5\xff", "characters"),
        (b"5 2", "characters"),
        (b"P", "end inside a number"),
        (b"P" * 9 + b"0", "longer than 7 characters"),
        (b"O", "negative or longer"),  # -1
        (b"00000000", "cover 0 pixels"),
        (b"59", "cover 14 pixels"),
        (b"PPPP0", "cover 0 pixels"),
        (b"ooooo?", "negative or longer"),  # far more pixels than the image
    ],
)
@pytest.mark.parametrize(
    "operation",
    [
        lambda rles: rle.area(rles, 3, 4),
        lambda rles: rle.iou(rles[:1], rles, 3, 4),
        lambda rles: rle.union(rles, [[0, 1]], 3, 4),
        lambda rles: rle.crop(rles, (0, 0, 2, 2), 3, 4),
    ],
    ids=["area", "iou", "union", "crop"],
)
def test_corrupt_counts_are_rejected(counts: bytes, reason: str, operation: Callable[..., Any]) -> None:
    """The message names the index of the corrupt mask."""
    rle.check([b"<"], 3, 4)
    with pytest.raises(MaskError, match=f"mask 1.*{reason}"):
        operation([b"<", counts])


def test_corrupt_counts_are_rejected_or_decoded_correctly() -> None:
    rng = np.random.default_rng(3)
    good = rle.encode(random_masks(10, 20, 20))
    accepted = 0
    for _ in range(3000):
        damaged = bytearray(good[rng.integers(10)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            area = rle.area([bytes(damaged)], 20, 20)
        except MaskError:
            continue
        accepted += 1
        assert area[0] == rle.decode([bytes(damaged)], 20, 20).sum()
    assert accepted < 3000


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5), (1 << 16, 1 << 16)])
def test_invalid_image_sizes_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(MaskError, match="is not supported"):
        rle.check([b"0"], *size)
