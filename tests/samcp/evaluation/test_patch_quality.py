"""Patch quality computed on RLEs, against its definition on decoded masks."""

import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from proposal_cache import CacheError, CacheWriter, PatchCache, Patches
from samcp.data.ground_truth import GroundTruth
from samcp.errors import DataError
from samcp.evaluation.patch_quality import ObjectFits, iou_metrics, measure_dataset, measure_image
from tests.toy_datasets import panoptic_dataset, write_patches

HEIGHT, WIDTH = 40, 50


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def patches_of(*masks):
    return Patches.from_masks(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH))


def truth_of(*masks, classes=None, is_thing=None, is_crowd=None):
    """Return ground truth of masks; by default things of class 0 that are not crowds."""
    n = len(masks)
    return GroundTruth(
        patches_of(*masks),
        np.array([0] * n if classes is None else classes, np.int64),
        np.array([True] * n if is_thing is None else is_thing, bool),
        np.array([False] * n if is_crowd is None else is_crowd, bool),
    )


def box(mask):
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) if len(xs) else np.zeros(4)


def intersection_area(a, b):
    """Return the intersection area of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return np.prod(np.maximum(sides, 0))


def box_iou(a, b):
    common = intersection_area(a, b)
    whole = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
    return common / whole if whole else 0.0


def box_iop(patch, entity):
    area = np.prod(patch[2:] - patch[:2])
    return intersection_area(patch, entity) / area if area else 0.0


def mask_iou(a, b):
    return (a & b).sum() / (a | b).sum()


def belongs(patches, entity):
    """Return whether each patch belongs to a thing by the rule of METHOD 6."""
    inside = [p.any() and min((p & entity).sum() / p.sum(), box_iop(box(p), box(entity))) > 0.8 for p in patches]
    ious = [box_iou(box(p), box(entity)) for p in patches]
    least = max([0.5, *(iou for iou, own in zip(ious, inside, strict=True) if own)])
    return [own or iou > least for iou, own in zip(ious, inside, strict=True)]  # low-quality matches


def literal_quality(patches, truth):
    """Return class, area, best IoU and merged IoU of each object, computed on decoded masks."""
    masks, rows = list(patches.decode()), []
    for c, crowd, entity in zip(truth.classes, truth.is_crowd, truth.masks.decode(), strict=True):
        if crowd or not entity.any():
            continue
        own = [p for p, is_own in zip(masks, belongs(masks, entity), strict=True) if is_own]
        best = max((mask_iou(p, entity) for p in masks), default=0.0)
        merged = mask_iou(np.any(own, axis=0), entity) if own else 0.0
        rows.append((c, entity.sum(), best, merged))
    return rows


def rows(fits):
    return list(zip(fits.classes, fits.areas, fits.best, fits.merged, strict=True))


def random_masks(rng, count):
    """Yield random ellipses and rectangles, some of them empty."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(count):
        x, y, w, h = rng.integers(WIDTH), rng.integers(HEIGHT), *rng.integers(0, 16, 2)
        inside = ((xs - x) / (w or 1)) ** 2 + ((ys - y) / (h or 1)) ** 2 < 1 if rng.random() < 0.5 else None
        yield rectangle(x, y, x + w, y + h) if inside is None else inside


@pytest.mark.parametrize("seed", range(20))
def test_equals_definition_on_decoded_masks(seed):
    rng = np.random.default_rng(seed)
    entities = list(random_masks(rng, 8))
    near = [np.roll(e, rng.integers(-3, 4, 2), axis=(0, 1)) & (rng.random() < 0.9) for e in entities for _ in range(3)]
    truth = truth_of(*entities, classes=rng.integers(0, 3, 8), is_crowd=rng.random(8) < 0.2)
    patches = patches_of(*near, *random_masks(rng, 10))
    np.testing.assert_allclose(rows(measure_image(patches, truth)), literal_quality(patches, truth), rtol=1e-12)


def test_object_covered_by_two_patches():
    truth = truth_of(rectangle(10, 10, 30, 20))
    halves = rectangle(10, 10, 20, 20), rectangle(20, 10, 30, 20)
    [(_, area, best, merged)] = rows(measure_image(patches_of(*halves), truth))
    assert (area, best, merged) == (200, 0.5, 1.0)


def test_patch_over_two_objects():
    truth = truth_of(rectangle(0, 0, 20, 10), rectangle(20, 0, 30, 10))
    fits = measure_image(patches_of(rectangle(0, 0, 30, 10)), truth)
    assert fits.best.tolist() == [2 / 3, 1 / 3]
    assert fits.merged.tolist() == [2 / 3, 0]  # a low-quality match of the first object, by the IoU of boxes


@pytest.mark.parametrize("patches", [Patches.empty(HEIGHT, WIDTH), patches_of(np.zeros((HEIGHT, WIDTH)))])
def test_no_patches_or_an_empty_patch(patches):
    fits = measure_image(patches, truth_of(rectangle(1, 1, 9, 9), rectangle(20, 1, 29, 9)))
    assert fits.best.tolist() == fits.merged.tolist() == [0, 0]


def test_crowds_and_empty_segments_are_skipped():
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    truth = truth_of(rectangle(1, 1, 9, 9), nothing, is_crowd=[True, False])
    for each in (truth, truth_of()):
        fits = measure_image(patches_of(rectangle(1, 1, 9, 9)), each)
        assert len(fits) == len(list(fits.groups())) == 0


def test_iou_metrics_by_hand():
    found = iou_metrics(np.array([0.2, 0.25, 0.5, 0.6, 0.8]))
    assert found == pytest.approx({"mIoU": 47, "mIoU>0.5": 70, "MR 0.25": 40, "MR 0.5": 60, "MR 0.75": 80})
    nothing = iou_metrics(np.array([0.1]))
    assert math.isnan(nothing["mIoU>0.5"])
    assert nothing["MR 0.25"] == 100
    assert all(math.isnan(value) for value in iou_metrics(np.zeros(0)).values())


def test_groups_and_classes():
    best = np.array([0.4, 0.6, 0.2, 0.9])
    areas = np.array([32**2 - 1, 32**2, 96**2, 50])
    fits = ObjectFits(np.array([4, 4, 2, 7]), np.array([True, True, True, False]), areas, best, merged=best)
    assert {name: part.best.tolist() for name, part in fits.groups()} == {
        "things": [0.4, 0.6, 0.2],
        "things, small": [0.4],
        "things, medium": [0.6],
        "things, large": [0.2],
        "stuff": [0.9],
        "stuff, small": [0.9],
        "all": [0.4, 0.6, 0.2, 0.9],
    }
    assert [(c, len(part)) for c, part in fits.of_classes()] == [(2, 1), (4, 2), (7, 1)]  # ascending mean IoU
    things = fits.select(fits.is_thing)
    assert "all" not in dict(things.groups())  # would repeat the things


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return folder and name of a dataset of four scenes."""
    folder = tmp_path_factory.mktemp("toy")
    with panoptic_dataset(folder, "toy_quality") as name:
        yield folder, name


def halves(folder):
    """Return the toy's patches without every third one, which is a whole segment."""
    cache = PatchCache(folder / "patches")
    return {key: cache[key].select(np.arange(len(cache[key])) % 3 < 2) for key in cache}


def test_dataset_with_every_segment_as_a_patch(toy):
    folder, name = toy
    quality = measure_dataset(name, str(folder / "patches"))
    segments = [
        s for a in json.loads((folder / "panoptic.json").read_text())["annotations"] for s in a["segments_info"]
    ]
    assert quality.images == 4
    assert quality.patches == 3 * len(segments)
    assert len(quality.fits) == len(segments) - 1  # one is a crowd
    assert iou_metrics(quality.fits.best) == {"mIoU": 100, "mIoU>0.5": 100, "MR 0.25": 0, "MR 0.5": 0, "MR 0.75": 0}
    assert {name for name, _ in quality.fits.groups()} >= {"things", "stuff", "all"}


def test_half_segments_are_merged(toy, tmp_path):
    folder, name = toy
    write_patches(tmp_path / "halves", name, halves(folder))
    fits = measure_dataset(name, str(tmp_path / "halves")).fits
    assert fits.best.mean() < 0.75
    assert (fits.merged == 1).all()
    limited = measure_dataset(name, str(tmp_path / "halves"), limit=1)
    assert limited.images == 1
    assert rows(limited.fits) == rows(fits)[: len(limited.fits)]


@pytest.mark.slow  # each process imports Detectron2
def test_several_workers_give_the_same_result(toy):
    folder, name = toy
    alone, together = (measure_dataset(name, str(folder / "patches"), workers=workers) for workers in (1, 2))
    assert rows(alone.fits) == rows(together.fits)
    assert alone.patches == together.patches


def test_failed_image_counts_as_image_without_patches(toy, tmp_path):
    folder, name = toy
    with CacheWriter(tmp_path / "failed", {"name": "toy"}, name) as writer:
        writer.add_failure("001", "broken")
        for key, patches in halves(folder).items():
            if key != "001":
                writer.add(key, patches)
    quality = measure_dataset(name, str(tmp_path / "failed"))
    first = measure_dataset(name, str(folder / "patches"), limit=1)
    assert dict(quality.failures) == {"001": "broken"}
    assert quality.images == 4
    assert (quality.fits.best[: len(first.fits)] == 0).all()
    assert (quality.fits.best[len(first.fits) :] > 0).all()


def test_errors_of_names_and_caches(toy, tmp_path):
    folder, name = toy
    with pytest.raises(DataError, match="there is no dataset 'toys'"):
        measure_dataset("toys", str(folder / "patches"))
    with pytest.raises(CacheError, match="nowhere: no patch cache; make it with: .* --dataset toy_quality"):
        measure_dataset(name, "nowhere")
    write_patches(tmp_path / "one", name, {"001": halves(folder)["001"]})
    with pytest.raises(CacheError, match="lacks 3 of the 4 images of toy_quality: 002, 003, 004"):
        measure_dataset(name, str(tmp_path / "one"))
    assert measure_dataset(name, str(tmp_path / "one"), limit=1).images == 1
    write_patches(tmp_path / "small", name, {f"00{i}": Patches.empty(6, 8) for i in range(1, 5)})
    with pytest.raises(CacheError, match=r"001.jpg: is 60 x 80 pixels .*, but the patches of '001' .* are of 6 x 8"):
        measure_dataset(name, str(tmp_path / "small"))


def test_errors_of_missing_ground_truth(toy, tmp_path, monkeypatch):
    folder, name = toy
    records = DatasetCatalog.get(name)
    monkeypatch.setitem(DatasetCatalog.data, name, lambda: [{**record, "segments_info": []} for record in records])
    with pytest.raises(DataError, match="'toy_quality': its 4 images have no ground-truth objects"):
        measure_dataset(name, str(folder / "patches"))
    gone = str(tmp_path / "gone.png")
    monkeypatch.setitem(
        DatasetCatalog.data, name, lambda: [{**record, "pan_seg_file_name": gone} for record in records]
    )
    with pytest.raises(DataError, match="gone.png: the ground truth is missing"):
        measure_dataset(name, str(folder / "patches"))
