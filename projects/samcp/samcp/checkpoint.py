"""Detectron2's checkpoints, which say what is wrong with them and carry their config."""

import pickle
from itertools import zip_longest
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from safetensors.torch import load_file
from torch import nn

from samcp.config import without_pretraining
from samcp.errors import CheckpointError
from samcp.export import SavedConfig, saved_vocabulary, trained_vocabulary
from samcp.modeling.meta_arch import SAMCP
from samcp.vocabulary import Vocabulary

_SHOWN_KEYS = 3
# All that a pickle of arrays names, Detectron2's ImageNet weights for one.
_ARRAY_PARTS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", part) for core in ("core", "_core") for part in ("_reconstruct", "scalar")),
}


class Checkpointer(DetectionCheckpointer):
    """Saves config and vocabulary beside the weights ("config", as text) and refuses a checkpoint that does not fit.

    As in Detectron2, `resume_or_load` and `load` differ: weights that a training starts from may cover a part of the
    model only, as ImageNet's do; those to evaluate or to resume from must be the whole model, and of the same classes.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, config=SavedConfig(cfg, model), **checkpointables)
        self._path = ""
        self._whole_model = True

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights and the states of training, or, where `checkpointables` is empty, weights to start from.

        Raises:
            CheckpointError: see there.
        """
        self._path = path
        self._whole_model = checkpointables is None
        try:
            return super().load(path, checkpointables)
        except (OSError, AssertionError) as error:
            raise CheckpointError(
                f"MODEL.WEIGHTS {path}: cannot be found or fetched ({error}); name a local file, or start a training "
                'without any by MODEL.WEIGHTS ""'
            ) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".safetensors"):
                return {"model": load_file(filename)}
            if filename.endswith(".pyth"):
                return self._load_pycls(filename)
            if filename.endswith(".pkl"):
                _check_pickle(filename)
            data = super()._load_file(filename)
            data["model"].items()
        except Exception as error:  # what a damaged pickle raises has no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{self._path}: is no checkpoint, or a damaged one ({reason})") from error
        return data

    def _load_pycls(self, filename: str) -> dict[str, Any]:
        """As Detectron2, which by an older PyTorch would run the code in the file."""
        state = self._torch_load(filename)["model_state"]
        weights = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._whole_model:
            self._check_classes(checkpoint)
        incompatible = super()._load_model(checkpoint)
        unfit = [key for key, *_ in incompatible.incorrect_shapes]
        absent = list(incompatible.missing_keys)
        unknown = list(incompatible.unexpected_keys)
        if self._whole_model and (unfit or absent or unknown):
            raise CheckpointError(
                f"{self._path}: is not a checkpoint of this config's model: {_count('tensor', absent, 'missing')}, "
                f"{_count('tensor', unfit, 'of another shape')}, {_count('tensor', unknown, 'unknown to it')}; use the "
                "config it was trained with"
            )
        if len(absent) >= len(self.model.state_dict()):
            raise CheckpointError(
                f"{self._path}: has no tensor that this config's model knows; name another MODEL.WEIGHTS"
            )
        return incompatible

    def _check_classes(self, checkpoint: dict[str, Any]) -> None:
        """Refuse other classes than the model's, where both are known; their synonyms may have changed."""
        own, trained = getattr(self.model, "vocabulary", None), trained_vocabulary(checkpoint)
        if own is None or trained is None:
            return
        difference = _difference(trained, own)
        if difference:
            raise CheckpointError(
                f"{self._path}: was trained on other classes than this run's datasets have: {difference}; resume with "
                "the datasets it was trained on, or start from its weights, as MODEL.WEIGHTS and without --resume, in "
                "another OUTPUT_DIR"
            )


def load_trained_model(cfg: CfgNode, weights: str, vocabulary: Vocabulary | None = None) -> SAMCP:
    """The model of a checkpoint with the classes that it was trained on, whatever the config's datasets have.

    What the training of its backbone started from need not be there.

    Args:
        vocabulary: the classes, where they are known already.

    Raises:
        CheckpointError: it is missing, damaged, or of another config's model.
    """
    model = SAMCP(without_pretraining(cfg), vocabulary=vocabulary or saved_vocabulary(weights)).to(cfg.MODEL.DEVICE)
    Checkpointer(model, cfg).load(weights)
    return model


def _difference(trained: Vocabulary, own: Vocabulary) -> str:
    """The first class that is another, in words; nothing where all are the same."""
    there, here = (
        [f"{name!r} ({'thing' if is_thing else 'stuff'})" for name, is_thing in zip(v.names, v.is_thing, strict=True)]
        for v in (trained, own)
    )
    for i, (before, now) in enumerate(zip_longest(there, here, fillvalue="none"), start=1):
        if before != now:
            return f"class {i} was {before} of {len(there)} and is {now} of {len(here)}"
    return ""


def _count(what: str, keys: list[str], how: str) -> str:
    shown = ", ".join(keys[:_SHOWN_KEYS]) + (", ..." if len(keys) > _SHOWN_KEYS else "")
    return f"{len(keys)} {what}s {how}" + (f" ({shown})" if keys else "")


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and containers, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which weights have no need of")
        return super().find_class(module, name)


def _check_pickle(filename: str) -> None:
    """Raise UnpicklingError for a pickle that could run code when Detectron2 loads it."""
    with open(filename, "rb") as file:
        _ArrayUnpickler(file, encoding="latin1").load()
