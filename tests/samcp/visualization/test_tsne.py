"""Features and labels of patches, and silhouette scores."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from proposal_cache import PatchCache, Patches
from samcp.predictor import Predictor
from samcp.regions import true_regions
from samcp.visualization.tsne import STAGES, PatchFeatures, patch_features, silhouette
from tests.samcp.test_segment import save_model


@pytest.fixture
def scene(synthetic, tmp_path):
    """Return an encoded drawn scene, and its true regions."""
    record = DatasetCatalog.get("synthetic_val")[0]
    patches = PatchCache(synthetic.val_patches)["val_00000"]
    truth = true_regions(record, (patches.height, patches.width), MetadataCatalog.get("synthetic_val"))
    predictor = Predictor.from_pretrained(save_model(tmp_path), device="cpu")
    exact = Patches.concatenate([patches, truth.masks])  # the last patches are the regions themselves
    return predictor(record["file_name"], exact), truth


def test_patch_has_the_label_of_the_region_it_is_inside_of(scene):
    encoded, truth = scene
    found = patch_features(encoded, truth)
    exact = slice(-len(truth), None)
    assert found.classes[exact].tolist() == truth.classes.tolist()
    assert (found.instances[exact] >= 0).tolist() == truth.is_thing.tolist()
    assert len(set(found.instances[exact][truth.is_thing])) == truth.is_thing.sum()
    assert {len(found.features[stage]) for stage in STAGES} == {len(found)}
    assert all(np.isfinite(found.features[stage]).all() for stage in STAGES)


def test_feature_of_the_backbone_is_the_mean_over_the_patch(scene):
    """On constant maps, the mean over any patch is the constant."""
    encoded, truth = scene
    for levels in encoded.encoded.features.values():
        levels[:] = torch.arange(levels.shape[1], dtype=torch.float32)[:, None, None]
    values = patch_features(encoded, truth).features["backbone"]
    expected = np.broadcast_to(np.arange(values.shape[1], dtype=np.float32), values.shape)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_instances_of_two_images_stay_apart():
    part = PatchFeatures(
        dict.fromkeys(STAGES, np.zeros((3, 4))), np.array([0, 0, 5]), np.array([1, 0, -1]), np.zeros((3, 3))
    )
    both = PatchFeatures.concatenate([part, part])
    assert both.instances.tolist() == [1, 0, -1, 3, 2, -1]
    assert both.classes.tolist() == [0, 0, 5, 0, 0, 5]
    features, labels, colors = both.by_instance(STAGES[0])
    assert (len(features), labels.tolist(), len(np.unique(colors, axis=0))) == (4, [1, 0, 3, 2], 4)


def test_silhouette():
    """The scores of clear, mixed and undefined clusters."""
    angles = np.array([0.0, 0.05, 1.5, 1.55])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert silhouette(points, np.array([0, 0, 1, 1])) > 0.95
    assert silhouette(points, np.array([0, 1, 0, 1])) < 0
    assert math.isnan(silhouette(points, np.array([0, 0, 0, 0])))
    assert math.isnan(silhouette(points, np.array([0, 1, 2, 3])))
