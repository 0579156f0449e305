"""Operations of Patches compared with the same operations on decoded masks."""

import pickle
from typing import Any

import numpy as np
import pytest

from proposal_cache import CacheError, Patches
from proposal_cache.errors import MaskError
from tests.proposal_cache.random_masks import random_masks


def test_round_trip() -> None:
    masks = random_masks(6, 31, 45)
    patches = Patches.from_masks(masks, predicted_iou=np.linspace(0, 1, 6), source=3)
    assert len(patches) == 6
    assert (patches.decode() == masks).all()
    assert (patches.decode([4, 1]) == masks[[4, 1]]).all()
    assert (patches.decode(2) == masks[[2]]).all()
    assert patches.areas.tolist() == masks.sum((1, 2)).tolist()
    assert patches.predicted_iou == pytest.approx(np.linspace(0, 1, 6))
    assert np.isnan(patches.stability_score).all()
    assert patches.source.tolist() == [3] * 6
    assert patches.coco_rles[0] == {"size": [31, 45], "counts": patches.rles[0]}


def test_types_and_shapes_of_zero_patches() -> None:
    empty = Patches.empty(10, 20)
    none, full = (Patches.from_masks(random_masks(count, 10, 20)) for count in (0, 3))
    for patches, n in ((empty, 0), (none, 0), (full, 3), (full.select([]), 0)):
        assert (patches.boxes.shape, patches.boxes.dtype) == ((n, 4), np.float32)
        assert (patches.areas.shape, patches.areas.dtype) == ((n,), np.int64)
        assert (patches.source.shape, patches.source.dtype) == ((n,), np.uint8)
        assert patches.predicted_iou.dtype == patches.stability_score.dtype == np.float32
        assert patches.decode().shape == (n, 10, 20)
        assert patches.roi_masks().shape == (n, 7, 7)
        assert len(patches.crop_to((0, 0, 5, 5))) == n
        assert patches.iou(full).shape == (n, 3)
        assert patches.iop(empty).shape == (n, 0)
        assert len(patches.select(slice(None))) == n
        assert len(patches.union([[]])) == 1


def test_decoded_runs_are_kept_but_not_pickled() -> None:
    patches = Patches.from_masks(random_masks(6, 31, 45))
    copy = pickle.loads(pickle.dumps(patches))
    assert copy.intervals is copy.intervals
    assert len(pickle.dumps(copy)) == len(pickle.dumps(patches))
    for index in ([3, 0, 3], [], slice(2, 5)):
        selected, decoded = patches.select(index), Patches.from_masks(patches.decode(index))
        for found, expected in zip(selected.intervals, decoded.intervals, strict=True):
            assert np.array_equal(found, expected)


def test_immutable() -> None:
    scores = np.ones(2, np.float32)
    patches = Patches.from_masks(random_masks(2, 9, 9), predicted_iou=scores)
    copy = pickle.loads(pickle.dumps(patches))
    columns = [getattr(p, name) for p in (patches, copy) for name in ("boxes", "areas", "predicted_iou", "source")]
    for column in [*columns, *patches.intervals, *copy.intervals]:
        with pytest.raises(ValueError, match="read-only"):
            column[:] = 0
    with pytest.raises(AttributeError):
        patches.height = 3  # type: ignore[misc]
    scores[:] = 0
    assert patches.predicted_iou.tolist() == [1, 1]


@pytest.mark.parametrize("index", [[3, 0], slice(1, 4), np.array([True, False, True, False, False]), np.int64(2), [-1]])
def test_select(index: Any) -> None:
    masks = random_masks(5, 20, 20)
    patches = Patches.from_masks(masks, stability_score=np.arange(5) / 5)
    chosen = patches.select(index)
    expected = masks[index].reshape(-1, 20, 20)
    assert (chosen.decode() == expected).all()
    assert chosen.areas.tolist() == expected.sum((1, 2)).tolist()
    assert chosen.stability_score.tolist() == np.atleast_1d(patches.stability_score[index]).tolist()


def test_concatenate() -> None:
    masks = random_masks(5, 20, 20)
    a, b = Patches.from_masks(masks[:2], source=0), Patches.from_masks(masks[2:], source=1)
    merged = Patches.concatenate([a, Patches.empty(20, 20), b])
    assert (merged.decode() == masks).all()
    assert merged.source.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(CacheError, match="20 x 20 and 20 x 21"):
        Patches.concatenate([a, Patches.empty(20, 21)])
    with pytest.raises(CacheError, match="nothing to concatenate"):
        Patches.concatenate([])


def test_crop_keeps_order_and_scores() -> None:
    masks = random_masks(8, 40, 50)
    patches = Patches.from_masks(masks, predicted_iou=np.arange(8) / 8)
    cropped = patches.crop_to((10, 5, 30, 25))
    inside = np.zeros((40, 50), bool)
    inside[5:25, 10:30] = True
    assert (cropped.decode() == masks & inside).all()
    assert cropped.predicted_iou.tolist() == patches.predicted_iou.tolist()
    gone = patches.crop_to((0, 0, 0, 0))
    assert gone.areas.tolist() == [0] * 8
    assert not gone.boxes.any()


def test_patches_that_cover_a_pixel() -> None:
    masks = random_masks(7, 9, 14)
    for y, x in ((0, 0), (3, 8), (8, 13)):
        assert Patches.from_masks(masks).covering(x, y).tolist() == np.flatnonzero(masks[:, y, x]).tolist()


def test_overlap_rejects_different_image_sizes() -> None:
    with pytest.raises(CacheError, match="sizes of the patches differ"):
        Patches.empty(4, 5).iop(Patches.empty(5, 4))


def reference_roi(mask: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Sample one point at a time."""
    (x0, y0, x1, y1), (height, width) = box, mask.shape
    result = np.zeros((size, size))
    for i in range(size * 4):
        for j in range(size * 4):
            y, x = y0 + (y1 - y0) * (i + 0.5) / (size * 4), x0 + (x1 - x0) * (j + 0.5) / (size * 4)
            if 0 <= y < height and 0 <= x < width and x1 > x0 and y1 > y0:
                result[i // 4, j // 4] += mask[int(y), int(x)] / 16
    return result


def test_roi_masks_match_the_reference() -> None:
    masks = random_masks(6, 60, 80)
    patches = Patches.from_masks(masks)
    other = np.random.default_rng(5).uniform(-20, 100, (6, 4))
    other[0] = [0, 0, 80, 60]
    for boxes in (None, other):
        found = patches.roi_masks(boxes, size=5)
        for mask, box, roi in zip(masks, patches.boxes if boxes is None else boxes, found, strict=True):
            np.testing.assert_allclose(roi, reference_roi(mask, box, 5), atol=1e-6)


def test_roi_masks_rejects_invalid_boxes() -> None:
    patches = Patches.from_masks(random_masks(2, 9, 9))
    for boxes in (np.zeros((3, 4)), np.full((2, 4), np.nan)):
        with pytest.raises(CacheError, match="must be .2, 4. and finite"):
            patches.roi_masks(boxes)


def test_corrupt_counts_and_columns_of_wrong_length_are_rejected() -> None:
    with pytest.raises(MaskError, match="mask 1"):
        Patches.from_rles(3, 4, [b"<", b"99"])
    with pytest.raises(CacheError, match="predicted_iou of 2 patches has shape"):
        Patches.from_masks(random_masks(2, 9, 9), predicted_iou=[0.5])
