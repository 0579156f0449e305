#!/usr/bin/env python
"""Train and evaluate SAM-CP, as every Detectron2 project is trained and evaluated.

    python projects/samcp/train_net.py --config-file configs/coco/panoptic/samcp_R50_12ep.yaml --num-gpus 8
    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    python projects/samcp/train_net.py --config-file ... --eval-only TEST.ORACLE True

The last one feeds the ground-truth affinity through the same inference and evaluators: the bound that the patches
allow. Each dataset of DATASETS.TRAIN and TEST needs a patch cache in DATASETS.PATCHES_TRAIN and PATCHES_TEST.
"""

import argparse
import re
import sys
from typing import Any

from samcp.command_line import training_parser


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of this command: Detectron2's options, and --register."""
    return training_parser(__doc__)


def main(args: argparse.Namespace) -> None:
    """Run in each process; exits with one message on an error that the user can fix."""
    from samcp.errors import USER_ERRORS

    try:
        run(args)
    except USER_ERRORS as error:
        sys.exit(f"error: {_message(error)}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate only; returns the figures of the last evaluation (in the main process)."""
    import torch
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from samcp.checkpoint import Checkpointer, load_trained_model
    from samcp.config import load_config, without_pretraining
    from samcp.data import check_test_data
    from samcp.data.datasets.custom.register import register_files
    from samcp.errors import UsageError
    from samcp.trainer import Trainer

    register_files(args.register)
    cfg = load_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="samcp")
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return trainer._last_eval_results
    check_test_data(cfg)
    if cfg.TEST.ORACLE:
        return Trainer.test(cfg, Trainer.build_model(without_pretraining(cfg)))
    folder = Checkpointer(torch.nn.Identity(), cfg)
    weights = folder.get_checkpoint_file() if args.resume and folder.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise UsageError("--eval-only needs a checkpoint: MODEL.WEIGHTS FILE, or --resume for the last of OUTPUT_DIR")
    return Trainer.test(cfg, load_trained_model(cfg, weights))


def _message(error: Exception) -> str:
    """Without the traceback that a DataLoader worker puts before it."""
    return re.split(rf"\n\S*{type(error).__name__}: ", str(error))[-1].strip()


if __name__ == "__main__":
    arguments = argument_parser().parse_args()

    from samcp.launch import launch

    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
