"""Training on a few images, compared with the oracle."""

import argparse
import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from tabulate import tabulate

from proposal_cache.generation.pipeline import generate
from proposal_cache.generators.contours import ContourGenerator
from samcp.config import load_config, oracle_config
from samcp.data.build import dataset_images
from samcp.data.datasets.subset import register_subset
from samcp.errors import exit_with_message
from samcp.log import start_log
from samcp.trainer import Trainer

_DATASETS = {"coco": "coco_2017_train_panoptic", "camvid": "camvid_train"}
_FIGURES = [("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")]


def main(arguments: argparse.Namespace) -> None:
    with exit_with_message():
        enough = overfit(arguments)
    sys.exit(0 if enough else 1)


def overfit(arguments: argparse.Namespace) -> bool:
    """Train, evaluate and print the results; return whether each metric reaches the required fraction."""
    dataset = _DATASETS.get(arguments.dataset, arguments.dataset)
    subset = register_subset(dataset, arguments.images, arguments.output, seed=arguments.seed)
    patches = arguments.output / f"patches_{subset}"
    generate(dataset_images(subset), ContourGenerator(), patches, subset)
    cfg = configure(subset, patches, arguments)
    results = {"model": train_and_evaluate(cfg), "oracle": evaluate_oracle(cfg)}
    return report(results, arguments.least)


def configure(dataset: str, patches: Path, arguments: argparse.Namespace) -> CfgNode:
    """Return the overfitting config for a dataset, with the user's overrides."""
    overrides = [
        *("DATASETS.TRAIN", repr((dataset,))),
        *("DATASETS.TEST", repr((dataset,))),
        *("DATASETS.PATCHES_TRAIN", repr((str(patches.resolve()),))),
        *("DATASETS.PATCHES_TEST", repr((str(patches.resolve()),))),
        *("OUTPUT_DIR", str(arguments.output / dataset)),
        *("SEED", str(arguments.seed)),
    ]
    if arguments.dataset == "camvid":
        overrides += ["MODEL.SAMCP.SEMANTIC_QUERIES", "all", "MODEL.SAMCP.INSTANCE_QUERIES", "False"]
        overrides += ["MODEL.SAMCP.TEST.PANOPTIC_ON", "False", "MODEL.SAMCP.TEST.INSTANCE_ON", "False"]
    options = default_argument_parser().parse_args(["--config-file", arguments.config, *overrides, *arguments.opts])
    cfg = load_config(options)
    start_log(cfg.OUTPUT_DIR, rank=0)
    default_setup(cfg, options)
    return cfg


def train_and_evaluate(cfg: CfgNode) -> dict:
    """Train from the backbone's pretrained weights; return the final results."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return Trainer.test(cfg, trainer.model)


def evaluate_oracle(cfg: CfgNode) -> dict:
    """Return the results of the ground-truth affinity."""
    oracle = oracle_config(cfg)
    return Trainer.test(oracle, Trainer.build_model(oracle))


def report(results: dict[str, dict], least: float) -> bool:
    """Print a table; return whether each metric reaches the fraction `least` of the oracle."""
    rows = []
    for task, figure in _FIGURES:
        if task in results["oracle"]:
            model, bound = (results[name][task][figure] for name in ("model", "oracle"))
            rows.append([figure, model, bound, model / bound])
    print(tabulate(rows, headers=["", "model", "oracle", "fraction"], floatfmt=("", ".1f", ".1f", ".3f")))
    return all(row[-1] >= least for row in rows)
