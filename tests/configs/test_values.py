"""Values of the paper's recipes (METHOD 9), which tests of the recipes on toy data replace."""

from pathlib import Path

import open_clip
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from samcp import add_samcp_config
from samcp.config_files import find_config
from tests.configs.test_recipes import RECIPES

IMAGES_OF_COCO = 118_000
COCO_SIZES = tuple(range(480, 801, 32))
ADE20K_SIZES = tuple(range(320, 1281, 64))
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLIP = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
# Config -> epochs on COCO, and those after which the learning rate drops.
EPOCHS = {
    "coco/panoptic/samcp_R50_12ep.yaml": (12, [8]),
    "coco/panoptic/samcp_R50_24ep.yaml": (24, [16]),
    "coco/panoptic/samcp_R50_36ep.yaml": (36, [27, 33]),
    "coco/panoptic/samcp_R50_50ep.yaml": (50, [40]),
    "coco/panoptic/samcp_R50_36ep_extra_proposals.yaml": (36, [27, 33]),
    "coco/panoptic/samcp_SwinL_36ep.yaml": (36, [27, 33]),
    "open_vocabulary/coco.yaml": (12, [8]),
}
ADE20K = {
    "ade20k/panoptic/samcp_R50_160k.yaml": (16, 160_000, (135_000,)),
    "ade20k/panoptic/samcp_SwinL_160k.yaml": (16, 160_000, (135_000,)),
    "open_vocabulary/ade20k.yaml": (32, 80_000, (67_500,)),
}
PAPER = [*EPOCHS, *ADE20K]
# Config of an evaluation -> test dataset, shorter side and longest side.
EVALUATIONS = {
    "coco/panoptic/samcp_R50_12ep.yaml": ("coco_2017_val_panoptic", 800, 1333),
    "ade20k/panoptic/samcp_R50_160k.yaml": ("ade20k_panoptic_val", 640, 2560),
    "open_vocabulary/coco_to_ade20k.yaml": ("ade20k_panoptic_val", 640, 2560),
    "open_vocabulary/coco_to_cityscapes.yaml": ("cityscapes_fine_panoptic_val", 1024, 2048),
    "open_vocabulary/ade20k_to_coco.yaml": ("coco_2017_val_panoptic", 800, 1333),
    "open_vocabulary/coco_to_cod10k.yaml": ("cod10k_test", 800, 1333),
}
KAPPA = {"coco_to_ade20k": 0.4, "coco_to_ade20k_learned": 0.0, "coco_to_ade20k_clip": 1.0}


def load(recipe: str) -> CfgNode:
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(find_config(recipe))
    return cfg


@pytest.mark.parametrize("recipe", PAPER)
def test_optimizer(recipe: str) -> None:
    solver = load(recipe).SOLVER
    assert (solver.BASE_LR, solver.BACKBONE_MULTIPLIER, solver.GAMMA, solver.WARMUP_ITERS) == (2e-4, 0.1, 0.1, 0)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 0)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE) == (True, "full_model", 0.1, 2.0)
    assert (32 if recipe.startswith("open_vocabulary") else 16) == solver.IMS_PER_BATCH


@pytest.mark.parametrize("recipe", EPOCHS)
def test_epochs_on_coco(recipe: str) -> None:
    cfg = load(recipe)
    epochs, drops = EPOCHS[recipe]
    epoch = IMAGES_OF_COCO / cfg.SOLVER.IMS_PER_BATCH
    assert epochs * epoch == cfg.SOLVER.MAX_ITER
    assert list(cfg.SOLVER.STEPS) == [drop * epoch for drop in drops]
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == COCO_SIZES
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == (1333, "choice")
    assert (cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, tuple(cfg.INPUT.CROP.SIZE)) == (
        True,
        "absolute_range",
        (384, 600),
    )
    assert not cfg.INPUT.CROP.AFTER_RESIZE
    assert (cfg.MODEL.SAMCP.LOSS.CLS, cfg.MODEL.SAMCP.MATCHER.CLS) == (2.0, 2.0)


@pytest.mark.parametrize("recipe", ADE20K)
def test_schedule_on_ade20k(recipe: str) -> None:
    cfg = load(recipe)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == ADE20K[recipe]
    assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == ADE20K_SIZES
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.COLOR_AUG_SSD, cfg.INPUT.CROP.AFTER_RESIZE) == (2560, True, True)
    assert (cfg.INPUT.CROP.TYPE, tuple(cfg.INPUT.CROP.SIZE)) == ("absolute", (640, 640))
    assert (cfg.MODEL.SAMCP.LOSS.CLS, cfg.MODEL.SAMCP.MATCHER.CLS) == (4.0, 4.0)


@pytest.mark.parametrize("recipe", EVALUATIONS)
def test_evaluation(recipe: str) -> None:
    cfg = load(recipe)
    [dataset] = cfg.DATASETS.TEST
    assert (dataset, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == EVALUATIONS[recipe]


@pytest.mark.parametrize("recipe", PAPER)
def test_normalization_is_that_of_the_backbone_in_rgb(recipe: str) -> None:
    cfg = load(recipe)
    mean, std = CLIP if recipe.startswith("open_vocabulary") else IMAGENET
    assert cfg.INPUT.FORMAT == "RGB"
    assert (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) == (mean, std)


@pytest.mark.parametrize("recipe", PAPER)
def test_activation_of_clip_is_that_of_its_weights(recipe: str) -> None:
    clip = load(recipe).MODEL.CLIP
    trained = open_clip.get_pretrained_cfg(clip.NAME, clip.PRETRAINED)
    assert trained, "open_clip has these weights"
    assert bool(open_clip.get_model_config(clip.NAME).get("quick_gelu")) == bool(trained.get("quick_gelu"))
    expected = (
        ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup")
        if recipe.startswith("open_vocabulary")
        else ("ViT-B-32-quickgelu", "openai")
    )
    assert expected == (clip.NAME, clip.PRETRAINED)


@pytest.mark.parametrize("name", KAPPA)
def test_kappa(name: str) -> None:
    options = load(f"open_vocabulary/{name}.yaml").MODEL.SAMCP.OPEN_VOCABULARY
    assert options.ENABLED
    assert (KAPPA[name], KAPPA[name]) == (options.KAPPA, options.KAPPA_UNSEEN)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if Path(r).parts[0] not in ("custom", "everyday")])
def test_datasets_are_registered(recipe: str) -> None:
    datasets = load(recipe).DATASETS
    assert {*datasets.TRAIN, *datasets.TEST} <= set(DatasetCatalog)
