"""Every config: build the model, train one step and evaluate, with a toy dataset instead of its own."""

import math
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser

from samcp import add_samcp_config
from samcp.config import load_config
from samcp.trainer import Trainer
from tests.tiny_clip import make_tiny_clip
from tests.toy_datasets import panoptic_dataset

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = CONFIGS / "_base_"
TABLES = CONFIGS / "miniature" / "tables"  # definitions of tables, which name configs
RECIPES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if path.parent not in (BASES, TABLES)
)
# Overrides that make a step faster.
SMALL = {
    "TEST.REPORT": False,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SWIN.WEIGHTS": "",
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": (1, 1, 1, 1),
    "MODEL.SWIN.NUM_HEADS": (1, 2, 3, 4),
    "MODEL.SAMCP.ROI_FC_DIM": 64,
    "MODEL.SAMCP.FFN_DIM": 64,
    "MODEL.SAMCP.DENOISING.MAX_QUERIES": 20,
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.STEPS": (),
    "TEST.EVAL_PERIOD": 0,
}
# (task, metric) of the results for each switch of MODEL.SAMCP.TEST.
METRICS = {
    "SEMANTIC_ON": [("sem_seg", "mIoU")],
    "INSTANCE_ON": [("segm", "AP"), ("bbox", "AP")],
    "PANOPTIC_ON": [("panoptic_seg", "PQ")],
    "PROMPTS_ON": [("prompt_1", "accuracy"), ("prompt_2", "F1")],
}


@pytest.fixture(scope="module")
def toy_settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy_settings")
    clip_name, clip_weights = make_tiny_clip(root, "convnext")
    with panoptic_dataset(root, "toy_settings", count=2) as name:
        yield {
            "DATASETS.TRAIN": (name,),
            "DATASETS.TEST": (name,),
            "DATASETS.PATCHES_TRAIN": (str(root / "patches"),),
            "DATASETS.PATCHES_TEST": (str(root / "patches"),),
            "MODEL.CLIP.NAME": clip_name,
            "MODEL.CLIP.PRETRAINED": clip_weights,
        }


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_cache_per_dataset_and_steps_before_end(recipe):
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / recipe))
    assert cfg.MODEL.META_ARCHITECTURE == "SAMCP"
    for split in ("TRAIN", "TEST"):
        assert len(cfg.DATASETS[split]) == len(cfg.DATASETS[f"PATCHES_{split}"])
    assert all(step < cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpoint_before_each_evaluation(recipe):
    """A failed evaluation must not lose training progress."""
    cfg = get_cfg()
    add_samcp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / recipe))
    assert cfg.TEST.EVAL_PERIOD % cfg.SOLVER.CHECKPOINT_PERIOD == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_trains_a_step_and_evaluates(recipe, toy_settings, tmp_path):
    settings = {**SMALL, **toy_settings, "OUTPUT_DIR": str(tmp_path)}
    overrides = [str(part) for item in settings.items() for part in item]
    arguments = ["--config-file", str(CONFIGS / recipe), *overrides]
    trainer = Trainer(load_config(default_argument_parser().parse_args(arguments)))
    trainer.train()
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
    assert losses
    assert all(math.isfinite(value) for value in losses.values())
    switches = trainer.cfg.MODEL.SAMCP.TEST
    expected = [metric for switch, metrics in METRICS.items() if switches[switch] for metric in metrics]
    results = trainer._last_eval_results
    assert set(results) == {task for task, _ in expected}
    assert all(0 <= results[task][metric] <= 100 for task, metric in expected)
