"""Checkpointer that saves the config, checks that weights match the model, and reports errors clearly."""

import pickle
from itertools import zip_longest
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from proposal_cache.errors import reason
from proposal_cache.store.durable import write_durably
from proposal_cache.torch_files import read_torch_file, write_torch_file
from samcp.config import without_pretraining
from samcp.errors import CheckpointError, DataError
from samcp.export import SavedConfig, read_tensors, saved_vocabulary, trained_vocabulary
from samcp.modeling.meta_arch import SAMCP
from samcp.vocabulary import Vocabulary

_SHOWN_KEYS = 3
# Globals in pickles of arrays, such as Detectron2's ImageNet weights.
_ARRAY_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class Checkpointer(DetectionCheckpointer):
    """Checkpointer that saves config and vocabulary (key "config") and rejects checkpoints of other models.

    As in Detectron2, `resume_or_load` and `load` differ: initial weights of a training may be a part of the model, such
    as ImageNet weights; weights to evaluate or to resume from must be the whole model with the same classes.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, config=SavedConfig(cfg, model), **checkpointables)
        self._path = ""
        self._whole_model = True

    def save(self, name: str, **kwargs: Any) -> None:
        """Write NAME.pth, then last_checkpoint, each atomically, so that a resumed training finds a complete one.

        Raises:
            StorageError: the disk is full, or the file cannot be written; earlier checkpoints stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {"model": self.model, **self.checkpointables}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_torch_file(path, {key: part.state_dict() for key, part in parts.items()} | kwargs)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint that `resume_or_load` continues from."""
        write_durably(Path(self.save_dir) / "last_checkpoint", last_filename_basename.encode())

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights and training state or, if `checkpointables` is empty, initial weights.

        Raises:
            CheckpointError: the checkpoint is missing, damaged, or of another model or other classes.
        """
        self._path = path
        self._whole_model = checkpointables is None
        try:
            return super().load(path, checkpointables)
        except (OSError, AssertionError) as error:
            why = "not found" if isinstance(error, AssertionError) else f"cannot be downloaded ({reason(error)})"
            raise _no_file(path, why) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".safetensors"):
                return {"model": read_tensors(filename)[0]}
            if filename.endswith(".pyth"):
                return self._load_pycls(filename)
            if filename.endswith(".pkl"):
                _check_pickle(filename)
            data = super()._load_file(filename)
            data["model"].items()
        except Exception as error:  # a damaged pickle raises many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{self._path}: not a checkpoint, or damaged ({reason})") from error
        return data

    def _load_pycls(self, filename: str) -> dict[str, Any]:
        """Load a pycls file as Detectron2 does, but never run code from it; Detectron2 does with older PyTorch."""
        state = self._torch_load(filename)["model_state"]
        weights = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return read_torch_file(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._whole_model:
            self._check_classes(checkpoint)
        incompatible = super()._load_model(checkpoint)
        mismatched = [key for key, *_ in incompatible.incorrect_shapes]
        missing = list(incompatible.missing_keys)
        unexpected = list(incompatible.unexpected_keys)
        if self._whole_model and (mismatched or missing or unexpected):
            raise CheckpointError(
                f"{self._path}: not a checkpoint of this config's model: {_count_tensors(missing, 'missing')}, "
                f"{_count_tensors(mismatched, 'of another shape')}, {_count_tensors(unexpected, 'unexpected')}; use "
                "the config it was trained with"
            )
        if len(missing) >= len(self.model.state_dict()):
            raise CheckpointError(
                f"{self._path}: has no tensor of this config's model; set MODEL.WEIGHTS to another checkpoint"
            )
        return incompatible

    def _check_classes(self, checkpoint: dict[str, Any]) -> None:
        """Raise CheckpointError if the classes differ from the model's and both are known; synonyms may differ."""
        try:
            current, trained = getattr(self.model, "vocabulary", None), trained_vocabulary(checkpoint)
        except DataError as error:
            raise CheckpointError(f"{self._path}: not a checkpoint, or damaged ({error})") from error
        if current is None or trained is None:
            return
        difference = _difference(trained, current)
        if difference:
            raise CheckpointError(
                f"{self._path}: trained on other classes than those of this run's datasets: {difference}; resume with "
                "the datasets it was trained on, or set MODEL.WEIGHTS to this file and train without --resume in "
                "another OUTPUT_DIR"
            )


def load_trained_model(cfg: CfgNode, weights: str, vocabulary: Vocabulary | None = None) -> SAMCP:
    """Load the model of a checkpoint with the classes of its training, not those of the config's datasets.

    The pretrained weights of the backbone are not needed.

    Args:
        vocabulary: the classes of the training; default: read from the checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another model.
    """
    vocabulary = vocabulary or saved_vocabulary(_local_file(weights))
    model = SAMCP(without_pretraining(cfg), vocabulary=vocabulary).to(cfg.MODEL.DEVICE)
    Checkpointer(model, cfg).load(weights)
    return model


def _local_file(path: str) -> str:
    """Return the file of a path or a URL, which is downloaded."""
    try:
        file = str(PathManager.get_local_path(path))
    except OSError as error:
        raise _no_file(path, f"cannot be downloaded ({reason(error)})") from error
    if not Path(file).is_file():
        raise _no_file(path, "not found")
    return file


def _no_file(path: str, why: str) -> CheckpointError:
    return CheckpointError(
        f'MODEL.WEIGHTS {path}: {why}; use a local file, or MODEL.WEIGHTS "" to start a training from random weights'
    )


def _difference(trained: Vocabulary, current: Vocabulary) -> str:
    """Describe the first class that differs; an empty string if all are equal."""
    trained_classes, current_classes = (
        [f"{name!r} ({'thing' if is_thing else 'stuff'})" for name, is_thing in zip(v.names, v.is_thing, strict=True)]
        for v in (trained, current)
    )
    for i, (before, now) in enumerate(zip_longest(trained_classes, current_classes, fillvalue="none"), start=1):
        if before != now:
            return f"class {i} was {before} of {len(trained_classes)} and is {now} of {len(current_classes)}"
    return ""


def _count_tensors(keys: list[str], problem: str) -> str:
    shown = ", ".join(keys[:_SHOWN_KEYS]) + (", ..." if len(keys) > _SHOWN_KEYS else "")
    return f"{len(keys)} tensors {problem}" + (f" ({shown})" if keys else "")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays and containers that rejects all other globals."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not needed for weights")
        return super().find_class(module, name)


def _check_pickle(filename: str) -> None:
    """Raise UnpicklingError for a pickle that could run code when Detectron2 loads it."""
    with open(filename, "rb") as file:
        _ArrayUnpickler(file, encoding="latin1").load()
