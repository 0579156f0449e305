"""Geometric augmentation of patches."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from proposal_cache import Patches
from samcp.data.patch_transforms import AxisAlignedMap, crop_patches, patch_instances

HEIGHT, WIDTH = 40, 60
SIZE = (HEIGHT, WIDTH)


def random_patches(rng, count):
    masks = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    for mask in masks:
        # With odd sides no sample point of a 7 x 7 RoI mask is on the edge between two pixels.
        w, h = 2 * rng.integers(4, 15) + 1, 2 * rng.integers(4, 10) + 1
        x, y = rng.integers(0, WIDTH - w + 1), rng.integers(0, HEIGHT - h + 1)
        mask[y : y + h, x : x + w] = rng.random((h, w)) < 0.7
    return masks


def mapping_of(*transforms):
    """Return the AxisAlignedMap and the TransformList of transforms."""
    transform = T.TransformList(list(transforms))
    shape = transform.apply_image(np.zeros((*SIZE, 3), dtype=np.uint8)).shape[:2]
    return AxisAlignedMap.from_transforms(transform, SIZE, shape), transform


CASES = {
    "nothing": [],
    "flip": [T.HFlipTransform(WIDTH)],
    "vertical flip": [T.VFlipTransform(HEIGHT)],
    "resize": [T.ResizeTransform(HEIGHT, WIDTH, 80, 90)],
    "crop": [T.CropTransform(7, 5, 40, 30)],
    "resize, crop, resize, flip": [
        T.ResizeTransform(HEIGHT, WIDTH, 80, 120),
        T.CropTransform(20, 10, 60, 50),
        T.ResizeTransform(50, 60, 100, 120),
        T.HFlipTransform(120),
    ],
    "nested": [T.TransformList([T.HFlipTransform(WIDTH), T.NoOpTransform()]), T.CropTransform(0, 0, 30, 30)],
    "extent": [T.ExtentTransform((10, 5, 40, 35), (60, 60))],
    "pad": [T.PadTransform(3, 4, 5, 6, WIDTH, HEIGHT)],
}


@pytest.mark.parametrize("name", CASES)
def test_boxes_equal_detectron2(name):
    mapping, transform = mapping_of(*CASES[name])
    boxes = np.array([[10, 8, 30, 28], [0, 0, 60, 40], [33.5, 2, 34, 39]], dtype=np.float32)
    expected = transform.apply_box(boxes.astype(np.float64))
    height, width = mapping.input_size
    expected[:, 0::2] = expected[:, 0::2].clip(0, width)
    expected[:, 1::2] = expected[:, 1::2].clip(0, height)
    np.testing.assert_allclose(mapping.map_boxes(boxes).tensor.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_visible_part_of_the_image(name):
    """Augment an image of pixel indices, and find the visible rectangle from the remaining indices."""
    mapping, transform = mapping_of(*CASES[name])
    remaining = transform.apply_segmentation(np.arange(1, HEIGHT * WIDTH + 1).reshape(SIZE).astype(np.float32))
    ys, xs = np.divmod(remaining[remaining > 0].astype(int) - 1, WIDTH)
    if name == "extent":  # Detectron2's resampling shifts the image by up to half a pixel
        assert mapping.visible == (10, 5, 40, 35)
    elif name == "pad":
        assert mapping.visible == (0, 0, WIDTH, HEIGHT)
    else:
        assert mapping.visible == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert mapping.crops == (name in ("crop", "resize, crop, resize, flip", "nested", "extent"))


@pytest.mark.parametrize(
    "transform",
    [
        T.RotationTransform(HEIGHT, WIDTH, 30),
        T.RotationTransform(HEIGHT, WIDTH, 90),
    ],
)
def test_rotations_are_rejected(transform):
    with pytest.raises(ValueError, match="RotationTransform"):
        AxisAlignedMap.from_transforms(T.TransformList([T.NoOpTransform(), transform]), SIZE, SIZE)


@pytest.mark.parametrize("name", ["nothing", "flip", "vertical flip", "crop", "resize, crop, resize, flip"])
def test_roi_masks_equal_those_of_augmented_masks(name):
    """RoI masks sampled from the RLE equal those of masks augmented by Detectron2."""
    masks = random_patches(np.random.default_rng(0), 30)
    mapping, transform = mapping_of(*CASES[name])
    seen = np.stack([transform.apply_segmentation(mask.astype(np.uint8)).astype(bool) for mask in masks])
    instances = patch_instances(crop_patches(Patches.from_masks(masks), mapping, 1), mapping, roi_size=7)
    expected = Patches.from_masks(seen[seen.any(axis=(1, 2))])
    np.testing.assert_allclose(instances.patch_boxes.tensor.numpy(), expected.boxes, atol=1e-4)
    difference = np.abs(instances.roi_masks.numpy() - expected.roi_masks(size=7))
    # After a crop sides may be even; a flip then moves sample points to the other side of a pixel edge.
    exact = 0.95 if "," in name else 1.0
    assert (difference < 1e-6).mean() >= exact


def test_crop_drops_small_remains():
    masks = np.zeros((4, HEIGHT, WIDTH), dtype=bool)
    masks[0, 0:10, 0:10] = True  # outside the crop
    masks[1, 20:30, 30:40] = True  # inside
    masks[2, 20:30, 0:22] = True  # cropped to 10 x 2 = 20 pixels
    masks[3, 25:27, 50:52] = True  # small, but not cropped
    patches = Patches.from_masks(masks)
    mapping, _ = mapping_of(T.CropTransform(20, 15, 40, 25))
    assert crop_patches(patches, mapping, min_area=16).areas.tolist() == [100, 20, 4]
    assert crop_patches(patches, mapping, min_area=21).areas.tolist() == [100, 4]


def test_uncropped_image_keeps_all_patches():
    patches = Patches.from_masks(np.eye(HEIGHT, WIDTH, dtype=bool)[None])
    mapping, _ = mapping_of(T.HFlipTransform(WIDTH), T.ResizeTransform(HEIGHT, WIDTH, 33, 47))
    assert crop_patches(patches, mapping, min_area=1000) is patches


def test_no_patches():
    mapping, _ = mapping_of(*CASES["resize, crop, resize, flip"])
    instances = patch_instances(crop_patches(Patches.empty(*SIZE), mapping, 16), mapping, roi_size=7)
    assert instances.patch_boxes.tensor.shape == (0, 4)
    assert instances.roi_masks.shape == (0, 7, 7)
    assert len(instances) == 0
