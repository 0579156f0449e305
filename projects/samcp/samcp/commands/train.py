"""Training and evaluation, in one process per GPU."""

import argparse
import re
import sys
from typing import Any

import torch
from detectron2.engine import default_setup
from detectron2.utils import comm

from samcp.checkpoint import Checkpointer, load_trained_model
from samcp.config import load_config, without_pretraining
from samcp.data import check_test_data
from samcp.data.datasets.custom.register import register_files
from samcp.errors import USER_ERRORS, UsageError
from samcp.launch import launch
from samcp.log import start_log
from samcp.trainer import Trainer


def main(arguments: argparse.Namespace) -> None:
    """Start the processes; exit with one message on an error that the user can fix."""
    launch(
        run_process,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )


def run_process(arguments: argparse.Namespace) -> None:
    """Run in one process."""
    try:
        run(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {_message(error)}")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate only; return the results of the last evaluation (in the main process)."""
    register_files(arguments.register)
    cfg = load_config(arguments)
    start_log(cfg.OUTPUT_DIR, comm.get_rank())
    default_setup(cfg, arguments)
    if not arguments.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=arguments.resume)
        trainer.train()
        return trainer._last_eval_results
    check_test_data(cfg)
    if cfg.TEST.ORACLE:
        return Trainer.test(cfg, Trainer.build_model(without_pretraining(cfg)))
    folder = Checkpointer(torch.nn.Identity(), cfg)
    weights = folder.get_checkpoint_file() if arguments.resume and folder.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise UsageError("no checkpoint to evaluate: add MODEL.WEIGHTS FILE, or --resume for the last of OUTPUT_DIR")
    return Trainer.test(cfg, load_trained_model(cfg, weights))


def _message(error: Exception) -> str:
    """Return the message without the traceback that a DataLoader worker puts before it."""
    return re.split(rf"\n\S*{type(error).__name__}: ", str(error))[-1].strip()
