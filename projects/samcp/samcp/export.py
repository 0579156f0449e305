"""A trained model as one file to hand on: its weights, config and vocabulary in safetensors, which can hold no code."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from samcp.config import parse_config
from samcp.errors import CheckpointError
from samcp.vocabulary import Vocabulary

SUFFIX = ".safetensors"
_CONFIG, _VOCABULARY = "samcp.config", "samcp.vocabulary"


class SavedConfig:
    """Config and classes of a model as a checkpoint holds them under "config"; a checkpointable of Detectron2.

    Args:
        cfg: saved as yaml text.
        model: its ``vocabulary``, if it has one, is saved beside, since the config's datasets may not be registered
            where the checkpoint is read.
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
    """What is in a model file.

    Attributes:
        tensors: the model's state dict.
        config: as yaml.
        vocabulary: of the dataset that the model was trained on.
    """

    tensors: dict[str, Tensor]
    config: str
    vocabulary: Vocabulary

    @classmethod
    def of_checkpoint(cls, path: str | Path) -> "ModelFile":
        """Read a checkpoint of train_net.py.

        Raises:
            CheckpointError: missing, damaged, or of another program.
        """
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
            config, tensors, known = data["config"]["yaml"], data["model"], trained_vocabulary(data)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: there is no such checkpoint") from error
        except Exception as error:  # what a damaged file raises has no common base
            raise CheckpointError(
                f"{path}: is not a checkpoint of this project's train_net.py, or a damaged one ({error!r:.80})"
            ) from error
        return cls(tensors, config, known or Vocabulary.of_config(parse_config(config)))

    @classmethod
    def load(cls, path: str | Path) -> "ModelFile":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: missing, damaged, or of another program.
        """
        if not os.path.isfile(path):
            raise CheckpointError(f"{path}: there is no such model file")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: is no safetensors file, or a damaged one ({error})") from error
        missing = {_CONFIG, _VOCABULARY} - metadata.keys()
        if missing:
            raise CheckpointError(
                f"{path}: has no {' and '.join(sorted(missing))} in its metadata; only files made by "
                "scripts/convert_checkpoint.py say what model they are"
            )
        return cls(tensors, metadata[_CONFIG], Vocabulary.from_json(metadata[_VOCABULARY]))

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file; under its name there is never half a file.

        Raises:
            CheckpointError: the name has another suffix.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise CheckpointError(f"{path}: a model file is called *{SUFFIX}; choose such a name")
        metadata = {_CONFIG: self.config, _VOCABULARY: self.vocabulary.to_json()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        # Tensors that share memory would be refused, and views would be written with all they are views of.
        save_file({name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}, partial, metadata)
        os.replace(partial, path)


def saved_vocabulary(path: str) -> Vocabulary | None:
    """The classes that a checkpoint or a model file was trained on; None where it does not say.

    What is wrong with a file is left to be said by whoever loads it.
    """
    try:
        if path.endswith(SUFFIX):
            with safe_open(path, "pt") as file:
                return Vocabulary.from_json(file.metadata()[_VOCABULARY])
        return trained_vocabulary(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # a damaged or foreign file fails in many ways
        return None
