"""Trainer with SAM-CP's data, optimiser, checkpoints and evaluators."""

import logging
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from timm.layers import convert_sync_batchnorm

from samcp.checkpoint import Checkpointer
from samcp.config import of_one_dataset
from samcp.data import build_test_loader, build_train_loader, check_test_data
from samcp.data.build import failed_records
from samcp.data.sampling import TrainingBatches, combine_seeds
from samcp.errors import CheckpointError, UsageError
from samcp.evaluation import build_evaluator, format_results
from samcp.modeling.meta_arch import SAMCP
from samcp.solver import build_optimizer
from samcp.training_steps import CheckedAMPTrainer, CheckedTrainer, CheckpointHook, RememberedBatches
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trainer of SAM-CP models."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SOLVER.IMS_PER_BATCH % comm.get_world_size():
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it must be a multiple of the number of "
                f"processes, {comm.get_world_size()}"
            )
        check_test_data(cfg)
        for name in cfg.DATASETS.TEST:  # report errors before the training, not after it
            self.build_evaluator(cfg, name)
        data_loader = self.build_train_loader(cfg)
        self._batches = cast(TrainingBatches, data_loader.batch_sampler)
        model = self.build_model(cfg)
        check_classes(cfg, model)
        _warn_about_unused_instance_queries(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        model = _distributed(model)
        trainer_class = CheckedAMPTrainer if cfg.SOLVER.AMP.ENABLED else CheckedTrainer
        self._trainer = trainer_class(model, RememberedBatches(data_loader), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load MODEL.WEIGHTS, or resume from the last checkpoint in OUTPUT_DIR.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, of another model or, when resuming, of other classes.
            UsageError: the state of optimiser or scaler does not match this config, or not all processes resume.
        """
        try:
            super().resume_or_load(resume)
        except CheckpointError:
            raise
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"the training in {self.cfg.OUTPUT_DIR} cannot be resumed with this config ({error}): SOLVER.AMP, the "
                "frozen layers and the learning rate groups must not change"
            ) from error
        self._batches.start = self.start_iter
        starts = comm.all_gather((self.start_iter, self._batches.seed))
        if len(set(starts)) > 1:
            raise UsageError(
                f"the processes start at different iterations ({sorted({start for start, _ in starts})}): OUTPUT_DIR, "
                f"{self.cfg.OUTPUT_DIR}, must be a folder that all machines share"
            )

    def run_step(self) -> None:
        """Run one iteration, with random numbers that depend on the seed, the iteration and the rank only."""
        torch.manual_seed(combine_seeds(self._batches.seed, comm.get_rank(), self.iter))
        super().run_step()

    def state_dict(self) -> dict[str, Any]:
        """Return Detectron2's state of the training, and the seed: with the iteration, the order of the data."""
        return {**super().state_dict(), "seed": self._batches.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._batches.seed = state_dict.get("seed", self._batches.seed)  # missing in files of earlier versions

    def build_hooks(self) -> list[HookBase]:
        """Return Detectron2's hooks, but keep only SOLVER.CHECKPOINTS_KEPT periodic checkpoints; the report is last."""
        solver = self.cfg.SOLVER
        kept = solver.CHECKPOINTS_KEPT or sys.maxsize
        checkpoints = CheckpointHook(self.checkpointer, solver.CHECKPOINT_PERIOD, max_to_keep=kept)
        hooks = [checkpoints if isinstance(hook, PeriodicCheckpointer) else hook for hook in super().build_hooks()]
        if not self.cfg.TEST.REPORT:
            return hooks
        from samcp.training_report import TrainingReport  # not above: it draws with matplotlib

        return [*hooks, TrainingReport()]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> RememberedBatches:
        return RememberedBatches(build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        missed = failed_records(cfg, dataset_name, is_train=False)
        return build_evaluator(cfg, dataset_name, output_folder, missed=missed)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: torch.nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Evaluate on each dataset of DATASETS.TEST, with the vocabulary of the dataset, and log a table of results.

        Raises:
            UsageError: a dataset has classes that the model has not learned, and its class embeddings are learned.
        """
        check_classes(cfg, model)
        # Build all of them with the whole config, which separates the output files of several datasets.
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results: dict[str, Any] = {}
        for i, (name, evaluator) in enumerate(zip(cfg.DATASETS.TEST, evaluators, strict=True)):
            with use_vocabulary_of(name, model):
                results[name] = super().test(of_one_dataset(cfg, i), model, [evaluator])
        if results and comm.is_main_process():
            source = "the ground-truth affinity (oracle)" if cfg.TEST.ORACLE else "the model"
            logger.info("Results of %s:\n%s", source, format_results(results))
        return next(iter(results.values())) if len(results) == 1 else results


def _warn_about_things_as_stuff(dataset: str, vocabulary: Vocabulary, model: SAMCP) -> None:
    """Log a warning if stuff classes of a dataset were things in training, with semantic queries for stuff only."""
    trained = model.vocabulary
    thing_words = {
        word for words, is_thing in zip(trained.words, trained.is_thing, strict=True) if is_thing for word in words
    }
    changed = [
        words[0]
        for words, is_thing in zip(vocabulary.words, vocabulary.is_thing, strict=True)
        if not is_thing and thing_words.intersection(words)
    ]
    if changed and model.semantic_queries == "stuff":
        logger.warning(
            "%d classes, such as %s, are stuff in %s but were things in training, where semantic queries were trained "
            "for stuff only; their scores are unreliable. Evaluate on the panoptic version of the dataset if it exists",
            len(changed),
            changed[0],
            dataset,
        )


def _warn_about_unused_instance_queries(cfg: CfgNode, model: torch.nn.Module) -> None:
    if cfg.MODEL.SAMCP.INSTANCE_QUERIES and not any(_unwrapped(model).vocabulary.is_thing):
        logger.warning(
            "%s has no thing classes, so instance queries are unnecessary; use configs/custom/semantic.yaml or "
            "MODEL.SAMCP.INSTANCE_QUERIES False",
            ", ".join(cfg.DATASETS.TRAIN),
        )


def check_classes(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Check that a model can predict the classes of each dataset of DATASETS.TEST, without embedding words.

    Raises:
        DataError: a dataset has no classes, or its vocabulary does not match them.
        UsageError: the class embeddings are learned and do not include all of the classes.
    """
    for name in cfg.DATASETS.TEST:
        words = Vocabulary.of_dataset(name).words
        with _name_dataset_in_errors(name):
            _unwrapped(model).class_embedding.check_words(words)


@contextmanager
def use_vocabulary_of(dataset: str, model: torch.nn.Module) -> Iterator[None]:
    """Set a model's vocabulary to that of a dataset within the context."""
    samcp = _unwrapped(model)
    previous, vocabulary = samcp.vocabulary, Vocabulary.of_dataset(dataset)
    _warn_about_things_as_stuff(dataset, vocabulary, samcp)
    if vocabulary != previous:
        with _name_dataset_in_errors(dataset):
            samcp.set_vocabulary(vocabulary)
    try:
        yield
    finally:
        if vocabulary != previous:
            samcp.set_vocabulary(previous)


@contextmanager
def _name_dataset_in_errors(dataset: str) -> Iterator[None]:
    """Convert ValueErrors to UsageErrors that name the dataset."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{dataset} cannot be evaluated: {error}") from error


def _unwrapped(model: torch.nn.Module) -> Any:
    """Return the model inside DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)


def _trains_batch_norm(model: torch.nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm))
    return any(norm.training for norm in norms)


def _distributed(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap a model for training with several processes, on GPUs or on the CPU.

    The loss of a batch without ground truth or without patches does not depend on all parameters, so DDP searches for
    unused parameters in each step. BatchNorm layers that are not frozen are synchronised.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if comm.get_world_size() > 1 and not on_cpu and _trains_batch_norm(model):
        model = convert_sync_batchnorm(model)  # PyTorch's own drops the activation of timm's BatchNormAct2d
    devices = None if on_cpu else [comm.get_local_rank()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices, find_unused_parameters=True)
