"""Properties of masks and caches, on random inputs that hypothesis makes smaller when they fail."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proposal_cache import CacheWriter, PatchCache, Patches, rle, verify
from tests.property_strategies import image_sizes, mask_stacks
from tests.proposal_cache.toy_cache import GENERATOR, same

_KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=20)


@st.composite
def two_stacks(draw):
    size = draw(image_sizes())
    return draw(mask_stacks(size)), draw(mask_stacks(size))


@st.composite
def caches(draw):
    """Draw patches by key, each of an image of its own size."""
    keys = draw(st.lists(_KEYS.filter(lambda key: key.strip(". ") == key), unique_by=str.casefold, max_size=6))
    return {key: Patches.from_masks(draw(mask_stacks())) for key in keys}


@given(mask_stacks())
def test_encoded_masks_are_decoded_unchanged(masks):
    height, width = masks.shape[1:]
    assert np.array_equal(rle.decode(rle.encode(masks), height, width), masks)


@given(two_stacks())
def test_overlaps_equal_those_of_pixels(stacks):
    masks, others = stacks
    height, width = masks.shape[1:]
    both = np.einsum("nhw,mhw->nm", masks.astype(float), others.astype(float))
    area, other_area = masks.sum((1, 2))[:, None], others.sum((1, 2))[None]
    found = rle.iop(rle.encode(masks), rle.encode(others), height, width)
    np.testing.assert_allclose(found, both / np.maximum(area, 1), atol=1e-12)
    found = rle.iou(rle.encode(masks), rle.encode(others), height, width)
    np.testing.assert_allclose(found, both / np.maximum(area + other_area - both, 1), atol=1e-12)


@given(mask_stacks(min_count=1), st.data())
def test_union_is_commutative_and_idempotent(masks, data):
    height, width = masks.shape[1:]
    group = data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=6))
    shuffled = data.draw(st.permutations(group))
    rles = rle.encode(masks)
    [union, again, twice] = rle.union(rles, [group, shuffled, group + shuffled], height, width)
    assert union == again == twice == rle.encode(masks[group].any(0)[None])[0]


@given(mask_stacks(), st.lists(st.floats(-20, 30), min_size=4, max_size=4))
def test_crop_is_an_intersection_with_a_rectangle(masks, rectangle):
    height, width = masks.shape[1:]
    x0, y0, x1, y1 = np.rint(rectangle)
    rows, columns = np.arange(height), np.arange(width)
    inside = np.outer((rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1))
    assert rle.crop(rle.encode(masks), rectangle, height, width) == rle.encode(masks & inside)


@given(mask_stacks())
def test_areas_and_boxes_equal_those_of_pixels(masks):
    patches = Patches.from_masks(masks)
    for mask, area, box in zip(masks, patches.areas, patches.boxes, strict=True):
        y, x = np.nonzero(mask)
        assert area == len(x)
        assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])


@given(mask_stacks())
def test_atomic_regions_have_the_same_patches_everywhere(masks):
    partition = Patches.from_masks(masks).partition()
    painted = partition.paint(np.arange(len(partition.areas)))
    for region in np.unique(painted):
        inside = masks[:, painted == region]
        assert (inside == inside[:, :1]).all()


@given(caches(), st.integers(1, 4))
def test_caches_return_what_was_written(content, shard_size):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        with CacheWriter(path, GENERATOR, "toys", shard_size) as writer:
            for key, patches in content.items():
                writer.add(key, patches)
        cache = PatchCache(path)
        assert set(cache) == set(content)
        assert all(same(cache[key], patches) for key, patches in content.items())
        assert not [verdict for verdict in verify(path) if verdict.problem]
