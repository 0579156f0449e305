#!/usr/bin/env python
"""Train and evaluate SAM-CP, as every Detectron2 project is trained and evaluated.

    python projects/samcp/train_net.py --config-file configs/coco/panoptic/samcp_R50_12ep.yaml --num-gpus 8
    python projects/samcp/train_net.py --config-file ... --eval-only MODEL.WEIGHTS model_final.pth
    python projects/samcp/train_net.py --config-file ... --eval-only TEST.ORACLE True

The last one feeds the ground-truth affinity through the same inference and evaluators: the bound that the patches
allow. Each dataset of DATASETS.TRAIN and TEST needs a patch cache in DATASETS.PATCHES_TRAIN and PATCHES_TEST.
"""

import argparse
import logging
import re
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from proposal_cache import CacheError
from samcp import add_samcp_config
from samcp.checkpoint import Checkpointer, CheckpointError
from samcp.data import DataError, build_test_loader, build_train_loader, check_test_data
from samcp.evaluation import build_evaluator, format_results
from samcp.solver import build_optimizer

logger = logging.getLogger("samcp")


class UsageError(ValueError):
    """A config or a combination of options that cannot run."""


# What a user can put right: shown as one message. Everything else is a bug and keeps its traceback.
_USER_ERRORS = (UsageError, CacheError, DataError, CheckpointError)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with SAM-CP's data, optimiser, checkpoints and evaluators."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_test_data(cfg)
        data_loader = self.build_train_loader(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model = _distributed(model)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: torch.nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate on every dataset of DATASETS.TEST and log all figures in one table."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            names = cfg.DATASETS.TEST
            by_dataset = {names[0]: results} if len(names) == 1 else results
            source = "the ground-truth affinity (oracle)" if cfg.TEST.ORACLE else "the model"
            logger.info("Results of %s:\n%s", source, format_results(by_dataset))
        return results


def main(args: argparse.Namespace) -> None:
    """Run in each process; exits with one clear message where the user can put something right."""
    try:
        run(args)
    except _USER_ERRORS as error:
        sys.exit(f"error: {_message(error)}")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate only; returns the figures of the last evaluation (in the main process)."""
    cfg = load_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="samcp")
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return trainer._last_eval_results
    check_test_data(cfg)
    model = Trainer.build_model(cfg)
    if not cfg.TEST.ORACLE:
        checkpointer = Checkpointer(model, cfg)
        last = args.resume and checkpointer.has_checkpoint()
        path = checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS
        if not path:
            raise UsageError(
                "--eval-only needs a checkpoint: MODEL.WEIGHTS FILE, or --resume for the last of OUTPUT_DIR"
            )
        checkpointer.load(path)
    return Trainer.test(cfg, model)


def load_config(args: argparse.Namespace) -> CfgNode:
    """The config of --config-file with the overrides of the command line.

    Raises:
        UsageError: unreadable, an unknown key, or a combination that cannot run.
    """
    cfg = get_cfg()
    add_samcp_config(cfg)
    try:
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except (OSError, AssertionError, KeyError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"config {args.config_file!r} with {args.opts}: {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but PyTorch sees no GPU here; add: MODEL.DEVICE cpu")
    if cfg.TEST.ORACLE and not args.eval_only:
        raise UsageError("TEST.ORACLE evaluates the ground truth, which needs no training; add: --eval-only")
    cfg.freeze()
    return cfg


def _distributed(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap for several processes, on GPUs or on the CPU.

    A batch without ground truth or without patches leaves parts of the model out of the loss, so unused parameters are
    looked for in every step.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    devices = None if on_cpu else [comm.get_local_rank()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices, find_unused_parameters=True)


def _message(error: Exception) -> str:
    """Without the traceback that a DataLoader worker puts before it."""
    return re.split(rf"\n\S*{type(error).__name__}: ", str(error))[-1].strip()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
