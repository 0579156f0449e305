"""Fixtures for tests of the network: a small model and random inputs."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from proposal_cache import Patches
from samcp import SAMCP, add_samcp_config

THINGS, CLASSES = 3, 5  # classes 0..2 are things, 3 and 4 stuff


@pytest.fixture(scope="session")
def toy_vocabulary() -> str:
    """Return the name of registered metadata with three thing classes and two stuff classes."""
    name = "modeling_toy"
    MetadataCatalog.get(name).set(
        stuff_classes=["disc", "square", "ring", "sky", "grass"],
        thing_dataset_id_to_contiguous_id={i: i for i in range(THINGS)},
    )
    return name


@pytest.fixture
def toy_cfg(toy_vocabulary: str) -> CfgNode:
    """Config of a model that runs in a fraction of a second."""
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (toy_vocabulary,)),
            *("MODEL.META_ARCHITECTURE", "SAMCP"),
            *("MODEL.DEVICE", "cpu"),
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.NORM", "GN"),
            *("MODEL.FPN.OUT_CHANNELS", 32),
            *("MODEL.SAMCP.HIDDEN_DIM", 32),
            *("MODEL.SAMCP.NHEADS", 4),
            *("MODEL.SAMCP.FFN_DIM", 64),
            *("MODEL.SAMCP.ROI_FC_DIM", 48),
            *("MODEL.SAMCP.ENC_LAYERS", 2),
            *("MODEL.SAMCP.DEC_LAYERS", 3),
            *("MODEL.SAMCP.DENOISING.MAX_QUERIES", 24),
            *("MODEL.SAMCP.TEXT.ENCODER", "learned"),
            *("MODEL.SAMCP.TEXT.LEARNED_DIM", 16),
        ]
    )
    return cfg


@pytest.fixture
def toy_model(toy_cfg: CfgNode) -> SAMCP:
    """Model with weights of a fixed seed and affinities that differ between patches."""
    torch.manual_seed(0)
    return spread_affinities(build_model(toy_cfg))


def spread_affinities(model: SAMCP) -> SAMCP:
    """Randomize the patch biases of a model, so that affinities differ between patches; return the model."""
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.affinity.patch_bias.normal_(std=0.2)
    return model


def make_patches(num: int, height: int = 64, width: int = 96, seed: int = 0) -> Patches:
    """Return ``num`` random ellipses, some of them overlapping."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    masks = np.zeros((num, height, width), bool)
    for mask in masks:
        h, w = rng.uniform(3, height / 4), rng.uniform(3, width / 4)
        y, x = rng.uniform(h, height - h), rng.uniform(w, width - w)
        mask[:] = ((ys - y) / h) ** 2 + ((xs - x) / w) ** 2 < 1
    return Patches.from_masks(masks)


def make_input(num_patches: int, groups: dict[int, list[int]], seed: int = 0, size: tuple[int, int] = (64, 96)) -> dict:
    """Return the mapper's output for an image whose entities are unions of patches.

    Args:
        groups: class to the patches of its only entity.
    """
    height, width = size
    rles = make_patches(num_patches, height, width, seed)
    patches = Instances(size)
    patches.patch_boxes = Boxes(torch.from_numpy(rles.boxes.copy()))
    patches.roi_masks = torch.from_numpy(rles.roi_masks())
    patches.in_crowd = torch.zeros(num_patches, dtype=torch.bool)
    image = np.random.default_rng(seed + 1).integers(0, 255, (3, height, width), dtype=np.uint8)
    return {
        "image": torch.from_numpy(image),
        "height": height,
        "width": width,
        "patches": patches,
        "patch_rles": rles,
        "instances": make_entities(rles, {c: g for c, g in groups.items() if c < THINGS}),
        "sem_segments": make_entities(rles, groups),
    }


def make_entities(rles: Patches, groups: dict[int, list[int]]) -> Instances:
    """Return entities that are exact unions of patches."""
    entities = Instances((rles.height, rles.width))
    affinity = torch.zeros(len(groups), len(rles), dtype=torch.bool)
    boxes = torch.zeros(len(groups), 4)
    for k, group in enumerate(groups.values()):
        if not group:
            continue
        affinity[k, group] = True
        chosen = torch.from_numpy(rles.boxes.copy())[group]
        boxes[k] = torch.cat([chosen[:, :2].amin(0), chosen[:, 2:].amax(0)])
    entities.gt_classes = torch.tensor(list(groups), dtype=torch.long)
    entities.gt_boxes = Boxes(boxes)
    entities.gt_affinity = affinity
    entities.gt_ignore = torch.zeros_like(affinity)
    return entities


@pytest.fixture
def toy() -> Any:
    """Functions above that make inputs."""

    class Toy:
        patches = staticmethod(make_patches)
        input = staticmethod(make_input)
        entities = staticmethod(make_entities)

    return Toy
