"""Training and evaluation, in one process per GPU."""

import argparse
import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from proposal_cache.errors import StorageError
from proposal_cache.generators.memory import is_out_of_memory
from samcp.checkpoint import Checkpointer, load_trained_model
from samcp.config import load_config, without_pretraining
from samcp.data import check_test_data
from samcp.data.datasets.custom.register import register_files
from samcp.errors import USER_ERRORS, UsageError, exit_with_message
from samcp.launch import KILLED, launch
from samcp.log import start_log
from samcp.trainer import Trainer

_RESUME = "--resume continues from the last checkpoint"
_SMALLER = (
    "Use a smaller SOLVER.IMS_PER_BATCH, smaller images (INPUT.MAX_SIZE_TRAIN, INPUT.MAX_SIZE_TEST), or "
    "SOLVER.AMP.ENABLED True"
)


def main(arguments: argparse.Namespace) -> None:
    """Start the processes; exit with one message on an error that the user can fix."""
    if arguments.num_gpus * arguments.num_machines > 1 and _is_on_cpu(arguments):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # with a GPU, Detectron2 would let the processes communicate by NCCL
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
    resume = "" if arguments.eval_only else f"; {_RESUME}"
    try:
        run(arguments)
    except USER_ERRORS as error:
        sys.exit(f"error: {_message(error)}")
    except RuntimeError as error:
        if is_out_of_memory(error):
            sys.exit(f"error: {str(error).strip().splitlines()[0].rstrip('.')}. {_SMALLER}{resume}")
        if "DataLoader worker" not in str(error):
            raise
        sys.exit(f"error: {str(error).strip().rstrip('.')}. {KILLED}{resume}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted{resume}")


def _is_on_cpu(arguments: argparse.Namespace) -> bool:
    with exit_with_message():
        register_files(arguments.register)
        return bool(load_config(arguments).MODEL.DEVICE == "cpu")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, or evaluate only; return the results of the last evaluation (in the main process)."""
    register_files(arguments.register)
    cfg = load_config(arguments)
    if getattr(arguments, "deterministic", False):  # not an option of Detectron2's parser
        cfg = make_deterministic(cfg)
    with naming_full_disk(cfg.OUTPUT_DIR):
        return _run(cfg, arguments)


def _run(cfg: CfgNode, arguments: argparse.Namespace) -> dict[str, Any]:
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


def make_deterministic(cfg: CfgNode) -> CfgNode:
    """Make PyTorch repeat results bit for bit, and return the config with a seed.

    On a GPU, operations without a deterministic algorithm give a warning that names them, and may differ.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as PyTorch's documentation asks for
    torch.use_deterministic_algorithms(True, warn_only=cfg.MODEL.DEVICE != "cpu")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = max(cfg.SEED, 0)
    cfg.CUDNN_BENCHMARK = False
    cfg.freeze()
    return cfg


@contextmanager
def naming_full_disk(folder: str) -> Iterator[None]:
    """Raise the OSError of a full disk, which has no name of a file, as StorageError.

    A thread that meets it prints no traceback: TensorBoard's raises the error again at the next write or the end.
    """
    print_traceback = threading.excepthook
    threading.excepthook = lambda failure: None if _is_disk_full(failure.exc_value) else print_traceback(failure)
    try:
        yield
    except OSError as error:
        if not _is_disk_full(error):
            raise
        raise StorageError(f"{folder} cannot be written: {error.strerror}; free space; {_RESUME}") from error
    finally:
        threading.excepthook = print_traceback


def _is_disk_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _message(error: Exception) -> str:
    """Return the message without the traceback that a DataLoader worker puts before it."""
    return re.split(rf"\n\S*{type(error).__name__}: ", str(error))[-1].strip()
