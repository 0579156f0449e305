"""Detectron2's trainer with SAM-CP's parts."""

import logging
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from samcp.checkpoint import Checkpointer
from samcp.config import of_one_dataset
from samcp.data import build_test_loader, build_train_loader, check_test_data
from samcp.errors import CheckpointError, UsageError
from samcp.evaluation import build_evaluator, format_results
from samcp.modeling.meta_arch import SAMCP
from samcp.solver import build_optimizer
from samcp.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with SAM-CP's data, optimiser, checkpoints and evaluators."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SOLVER.IMS_PER_BATCH % comm.get_world_size():
            raise UsageError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {comm.get_world_size()} processes cannot "
                "share evenly"
            )
        check_test_data(cfg)
        for name in cfg.DATASETS.TEST:  # once for nothing: what is wrong with one shows now, not after hours
            self.build_evaluator(cfg, name)
        data_loader = self.build_train_loader(cfg)
        model = self.build_model(cfg)
        check_classes(cfg, model)
        _warn_of_queries_for_nothing(cfg, model)
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

    def resume_or_load(self, resume: bool = True) -> None:
        """Begin from MODEL.WEIGHTS, or go on from OUTPUT_DIR's last checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another config's model, or the last one is of other classes.
            UsageError: optimiser or scaler cannot go on under this config.
        """
        try:
            super().resume_or_load(resume)
        except CheckpointError:
            raise
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"the training in {self.cfg.OUTPUT_DIR} cannot go on under this config ({error}): SOLVER.AMP, and what "
                "of the model is trained and at which rates, must be as they were"
            ) from error

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
        """Evaluate on every dataset of DATASETS.TEST, on each by its own words, and log all figures in one table.

        Raises:
            UsageError: a dataset has classes that the model was not trained on and cannot be told of.
        """
        check_classes(cfg, model)
        # All before the first is used, and by the whole config: files of several datasets are kept apart.
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results: dict[str, Any] = {}
        for i, (name, evaluator) in enumerate(zip(cfg.DATASETS.TEST, evaluators, strict=True)):
            with asked_for_classes_of(name, model):
                results[name] = super().test(of_one_dataset(cfg, i), model, [evaluator])
        if results and comm.is_main_process():
            source = "the ground-truth affinity (oracle)" if cfg.TEST.ORACLE else "the model"
            logger.info("Results of %s:\n%s", source, format_results(results))
        return next(iter(results.values())) if len(results) == 1 else results


def _warn_of_things_as_stuff(dataset: str, asked: Vocabulary, model: SAMCP) -> None:
    """Semantic queries were taught nothing of things where things had instance queries."""
    own = model.vocabulary
    learned = {word for words, is_thing in zip(own.words, own.is_thing, strict=True) if is_thing for word in words}
    turned = [
        words[0]
        for words, is_thing in zip(asked.words, asked.is_thing, strict=True)
        if not is_thing and learned.intersection(words)
    ]
    if turned and model.semantic_queries == "stuff":
        logger.warning(
            "%s has no instances, so %d things that the model has learned as such, %s for one, are asked for as if "
            "they were stuff, which it was not taught; its panoptic form, if it has one, judges better",
            dataset,
            len(turned),
            turned[0],
        )


def _warn_of_queries_for_nothing(cfg: CfgNode, model: torch.nn.Module) -> None:
    if cfg.MODEL.SAMCP.INSTANCE_QUERIES and not any(_unwrapped(model).vocabulary.is_thing):
        logger.warning(
            "no class of %s is a thing, and instance queries, one for each patch, find things alone: "
            "configs/custom/semantic.yaml does without (MODEL.SAMCP.INSTANCE_QUERIES False)",
            ", ".join(cfg.DATASETS.TRAIN),
        )


def check_classes(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Make sure that a model can be asked for the classes of every dataset of DATASETS.TEST; encodes no word.

    Raises:
        DataError: a dataset has no classes, or its vocabulary does not fit them.
        UsageError: the model has not learned all of them.
    """
    for name in cfg.DATASETS.TEST:
        words = Vocabulary.of_dataset(name).words
        with _naming(name):
            _unwrapped(model).class_embedding.check_words(words)


@contextmanager
def asked_for_classes_of(dataset: str, model: torch.nn.Module) -> Iterator[None]:
    """Give a model the vocabulary of a dataset, and its own again at the end."""
    samcp = _unwrapped(model)
    own, asked = samcp.vocabulary, Vocabulary.of_dataset(dataset)
    _warn_of_things_as_stuff(dataset, asked, samcp)
    if asked != own:
        with _naming(dataset):
            samcp.set_vocabulary(asked)
    try:
        yield
    finally:
        if asked != own:
            samcp.set_vocabulary(own)


@contextmanager
def _naming(dataset: str) -> Iterator[None]:
    """Errors of its classes name the dataset."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{dataset} cannot be evaluated: {error}") from error


def _unwrapped(model: torch.nn.Module) -> Any:
    """The SAMCP within DistributedDataParallel, or the model itself."""
    return getattr(model, "module", model)


def _trains_batch_norm(model: torch.nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm))
    return any(norm.training for norm in norms)


def _distributed(model: torch.nn.Module) -> torch.nn.Module:
    """Wrap for several processes, on GPUs or on the CPU.

    A batch without ground truth or without patches leaves parts of the model out of the loss, so unused parameters are
    looked for in every step. BatchNorm that is not frozen takes its statistics over all processes.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if comm.get_world_size() > 1 and not on_cpu and _trains_batch_norm(model):
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    devices = None if on_cpu else [comm.get_local_rank()]
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices, find_unused_parameters=True)
