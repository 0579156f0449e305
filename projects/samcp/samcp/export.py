"""Model file: weights, config and vocabulary of a trained model as safetensors, which cannot contain code.

Tensors of the backbone that the training did not change, and that an installed package contains, are not repeated.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from proposal_cache.store.durable import make_directory, write_durably
from proposal_cache.torch_files import halve, read_torch_file
from samcp import model_zoo
from samcp.config import parse_config
from samcp.config_overrides import merge_overrides
from samcp.errors import CheckpointError, DataError
from samcp.modeling.backbone.timm import PACKAGE, TimmBackbone
from samcp.vocabulary import Vocabulary

SUFFIX = ".safetensors"
_CONFIG, _VOCABULARY, _PACKAGED = "samcp.config", "samcp.vocabulary", "samcp.packaged"
_BACKBONE = "backbone.bottom_up."  # prefix of the tensors of a `TimmBackbone` in a model


class SavedConfig:
    """Config and classes of a model, saved in checkpoints under the key "config"; a checkpointable of Detectron2.

    Args:
        cfg: saved as yaml text.
        model: its ``vocabulary``, if any, is saved too, since the config's datasets may not be registered when the
            checkpoint is loaded.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._state = {"yaml": cfg.dump()}
        vocabulary = getattr(getattr(model, "module", model), "vocabulary", None)
        if vocabulary is not None:
            self._state["vocabulary"] = vocabulary.to_json()

    def state_dict(self) -> dict[str, str]:
        return self._state

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Do nothing: a resumed run uses its own config."""


def trained_vocabulary(checkpoint: Mapping[str, Any]) -> Vocabulary | None:
    """Return the classes that a loaded checkpoint was trained on, None if it does not store them."""
    state = checkpoint.get("config")
    if not isinstance(state, dict) or "vocabulary" not in state:
        return None
    return Vocabulary.from_json(state["vocabulary"])


@dataclass(frozen=True)
class ModelFile:
    """Contents of a model file.

    Attributes:
        tensors: the model's state dict.
        config: yaml text.
        vocabulary: classes of the training.
    """

    tensors: dict[str, Tensor]
    config: str
    vocabulary: Vocabulary

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> "ModelFile":
        """Read a checkpoint of train_net.py.

        Raises:
            CheckpointError: the file is missing, damaged, or of another program.
        """
        try:
            data = read_torch_file(path)
            config, tensors, vocabulary = data["config"]["yaml"], data["model"], trained_vocabulary(data)
        except FileNotFoundError as error:
            names = ", ".join(model_zoo.names())
            raise CheckpointError(f"{path}: no such checkpoint, and none of the shipped models: {names}") from error
        except Exception as error:  # a damaged file raises many types
            raise CheckpointError(f"{path}: not a checkpoint of this project's train_net.py, or damaged") from error
        return cls(tensors, config, vocabulary or Vocabulary.of_config(parse_config(config)))

    def for_release(self, opts: Sequence[str]) -> "ModelFile":
        """Return the model in half precision, with some keys of its config changed.

        Args:
            opts: keys and values, such as thresholds that were chosen after the training.

        Raises:
            UsageError: a key is unknown.
        """
        cfg = parse_config(self.config)
        cfg.defrost()
        merge_overrides(cfg, opts)
        return replace(self, tensors=halve(self.tensors), config=cfg.dump())

    @classmethod
    def load(cls, path: str | Path) -> "ModelFile":
        """Read a file written by :meth:`save`.

        Raises:
            CheckpointError: the file is missing, damaged, or of another program.
        """
        if not os.path.isfile(path):
            raise CheckpointError(f"{path}: no such model file")
        try:
            tensors, metadata = read_tensors(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from error
        missing = {_CONFIG, _VOCABULARY} - metadata.keys()
        if missing:
            raise CheckpointError(
                f"{path}: no {' and '.join(sorted(missing))} in its metadata; write model files with `samcp export`"
            )
        try:
            return cls(tensors, metadata[_CONFIG], Vocabulary.from_json(metadata[_VOCABULARY]))
        except DataError as error:
            raise CheckpointError(f"{path}: {error}; copy the file again") from error

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file atomically.

        Raises:
            CheckpointError: the name has another suffix.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise CheckpointError(f"{path}: the name of a model file must end with {SUFFIX}")
        metadata = {_CONFIG: self.config, _VOCABULARY: self.vocabulary.to_json()}
        packaged = _packaged_tensors(self.config)
        own = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name not in packaged or not torch.equal(tensor, packaged[name].to(tensor.dtype))
        }
        if len(own) < len(self.tensors):
            metadata[_PACKAGED] = "backbone"
        # safetensors rejects tensors that share memory, and would write the whole storage of a view.
        content = save({name: tensor.clone().contiguous() for name, tensor in own.items()}, metadata)
        make_directory(path.parent)
        write_durably(path, content)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file; those that a model file does not repeat are added.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    if _PACKAGED in metadata:
        tensors = {**_packaged_tensors(metadata[_CONFIG]), **tensors}
    return tensors, metadata


def _packaged_tensors(config: str) -> dict[str, Tensor]:
    """Return the tensors that a backbone has from an installed package before the training, by their names in a model.

    Empty if the weights of the config's backbone are not of a package.
    """
    timm = parse_config(config).MODEL.TIMM
    if not timm.WEIGHTS.startswith(PACKAGE):
        return {}
    backbone = TimmBackbone(name=timm.NAME, weights=timm.WEIGHTS)
    return {_BACKBONE + name: tensor for name, tensor in backbone.state_dict().items()}


def saved_vocabulary(path: str) -> Vocabulary | None:
    """Return the classes that a checkpoint or a model file was trained on, None if unknown or unreadable.

    Loading the file reports its errors.
    """
    try:
        if path.endswith(SUFFIX):
            with safe_open(path, "pt") as file:
                return Vocabulary.from_json(file.metadata()[_VOCABULARY])
        return trained_vocabulary(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # a damaged or unrelated file raises many types
        return None
