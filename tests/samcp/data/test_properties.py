"""Properties of augmentation and targets, on random inputs that hypothesis makes smaller when they fail."""

import numpy as np
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from proposal_cache import Patches
from samcp.data.affinity_targets import AffinityRule, Entities, TargetRules, build_targets
from samcp.data.ground_truth import GroundTruth
from samcp.data.patch_transforms import AxisAlignedMap
from tests.property_strategies import image_sizes, mask_stacks


@st.composite
def augmentations(draw, size):
    """Draw up to four flips, resizes and crops; return them and the size (height, width) of their result."""
    height, width = size
    transforms = []
    for kind in draw(st.lists(st.sampled_from(["flip", "upside down", "resize", "crop"]), max_size=4)):
        if kind == "flip":
            transforms.append(T.HFlipTransform(width))
        elif kind == "upside down":
            transforms.append(T.VFlipTransform(height))
        elif kind == "resize":
            new = draw(st.integers(1, 40)), draw(st.integers(1, 40))
            transforms.append(T.ResizeTransform(height, width, *new))
            height, width = new
        else:
            part = draw(st.integers(1, height)), draw(st.integers(1, width))
            top, left = draw(st.integers(0, height - part[0])), draw(st.integers(0, width - part[1]))
            transforms.append(T.CropTransform(left, top, part[1], part[0], width, height))
            height, width = part
    return T.TransformList(transforms or [T.NoOpTransform()]), (height, width)


@st.composite
def augmented_images(draw):
    size = draw(image_sizes())
    transforms, result = draw(augmentations(size))
    return size, transforms, result


@st.composite
def scenes(draw):
    """Draw patches, and entities with their classes."""
    size = draw(image_sizes())
    patches, entities = draw(mask_stacks(size)), draw(mask_stacks(size))
    patches, entities = patches[patches.any((1, 2))], entities[entities.any((1, 2))]
    count = len(entities)
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    classes = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    truth = GroundTruth(
        Patches.from_masks(entities),
        np.array(classes, np.int64),
        np.array([c < 2 for c in classes], bool),
        np.array(draw(flags), bool),
    )
    return patches, truth


def identity(size):
    return AxisAlignedMap.from_transforms(T.NoOpTransform(), size, size)


def targets_of(masks, truth):
    size = (truth.masks.height, truth.masks.width)
    return build_targets(Patches.from_masks(masks), truth, rules=TargetRules(), mapping=identity(size))


@given(augmented_images(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_move_as_detectron2_moves_them(image, corners):
    (height, width), transforms, result = image
    x0, x1 = sorted(corner * width for corner in corners[:2])
    y0, y1 = sorted(corner * height for corner in corners[2:])
    box = np.array([[x0, y0, x1, y1]])
    mapping = AxisAlignedMap.from_transforms(transforms, (height, width), result)
    expected = transforms.apply_box(box)
    expected[:, 0::2] = expected[:, 0::2].clip(0, result[1])
    expected[:, 1::2] = expected[:, 1::2].clip(0, result[0])
    np.testing.assert_allclose(mapping.map_boxes(box.astype(np.float32)).tensor.numpy(), expected, atol=1e-2)


@given(augmented_images())
def test_the_visible_part_covers_the_input_up_to_rounding(image):
    size, transforms, result = image
    mapping = AxisAlignedMap.from_transforms(transforms, size, result)
    x0, y0, x1, y1 = mapping.visible
    assert 0 <= x0 <= x1 <= size[1]
    assert 0 <= y0 <= y1 <= size[0]
    corners = np.array([[x0, y0], [x1, y1]]) * mapping.scale + mapping.offset
    pixel = np.abs(mapping.scale)  # size of an original pixel in the input
    assert (corners.min(0) <= pixel / 2 + 1e-2).all()
    assert (corners.max(0) >= np.array(result[::-1]) - pixel / 2 - 1e-2).all()


@given(scenes())
def test_no_pair_is_positive_and_ignored(scene):
    targets = targets_of(*scene)
    for entities in (targets.instances, targets.sem_segments):
        assert not (entities.gt_affinity & entities.gt_ignore).any()
    belongs = targets.instances.gt_affinity.any(0) | targets.sem_segments.gt_affinity.any(0)
    assert not (belongs & targets.in_crowd).any()


@given(scenes(), st.data())
def test_order_of_patches_does_not_matter(scene, data):
    masks, truth = scene
    order = data.draw(st.permutations(range(len(masks))))
    one, other = targets_of(masks, truth), targets_of(masks[order], truth)
    for a, b in ((one.instances, other.instances), (one.sem_segments, other.sem_segments)):
        assert a.gt_affinity[:, order].tolist() == b.gt_affinity.tolist()
        assert a.gt_ignore[:, order].tolist() == b.gt_ignore.tolist()
    assert one.in_crowd[order].tolist() == other.in_crowd.tolist()


@given(scenes())
def test_targets_of_a_mirrored_image_are_the_same(scene):
    masks, truth = scene
    mirrored = GroundTruth(
        Patches.from_masks(truth.masks.decode()[:, :, ::-1]), truth.classes, truth.is_thing, truth.is_crowd
    )
    one, other = targets_of(masks, truth), targets_of(masks[:, :, ::-1], mirrored)
    for a, b in ((one.instances, other.instances), (one.sem_segments, other.sem_segments)):
        assert a.gt_classes.tolist() == b.gt_classes.tolist()
        assert a.gt_affinity.tolist() == b.gt_affinity.tolist()
        assert a.gt_ignore.tolist() == b.gt_ignore.tolist()


@given(scenes())
def test_an_entity_that_is_a_patch_gets_it(scene):
    _, truth = scene
    masks = truth.masks.decode()
    single = np.eye(len(masks), dtype=bool)
    affinity, _ = AffinityRule().compare(
        truth.masks, Entities.of_segments(single, truth.classes, truth.masks, truth.masks)
    )
    assert affinity[single].all()


@given(scenes(), st.data())
def test_entities_are_measured_as_unions_in_pixels(scene, data):
    masks, truth = scene
    groups = data.draw(st.lists(st.lists(st.booleans(), min_size=len(truth.classes), max_size=len(truth.classes))))
    members = np.array(groups, bool).reshape(len(groups), len(truth.classes))
    patches = Patches.from_masks(masks)
    found = Entities.of_segments(members, np.arange(len(groups)), truth.masks, patches)
    segments = truth.masks.decode()
    unions = Patches.from_masks(np.array([segments[row].any(0) for row in members], bool).reshape(-1, *masks.shape[1:]))
    assert found.areas.tolist() == unions.areas.tolist()
    assert found.boxes.tolist() == unions.boxes.tolist()
    assert found.mask_iop.tolist() == patches.iop(unions).T.tolist()
