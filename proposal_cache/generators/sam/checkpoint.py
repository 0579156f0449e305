"""Loading SAM's weights from a file, with errors that tell a wrong file from a wrong model type."""

import hashlib
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

from proposal_cache.errors import CacheError

ENCODER_WIDTHS = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
MODEL_TYPES = tuple(ENCODER_WIDTHS)
WEIGHTS_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"


class CheckpointError(CacheError):
    """SAM's weights are missing, unreadable, or of another model than was asked for."""


def load_sam(model_type: str, checkpoint: str | Path) -> tuple[Sam, str]:
    """The model with the weights of a file, on the CPU, and the SHA-256 of that file.

    Args:
        model_type: one of vit_h, vit_l, vit_b.
        checkpoint: a file of SAM's own kind (`sam_vit_h_4b8939.pth`); no code in it is run.

    Raises:
        CheckpointError: naming the file, the model type, and the type that would fit if there is one.
    """
    path = Path(checkpoint)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"SAM has no model type '{model_type}'; choose one of {', '.join(MODEL_TYPES)}")
    if not path.is_file():
        raise CheckpointError(f"no SAM checkpoint at {path}; the weights of {model_type} are at {WEIGHTS_PAGE}")
    weights = _read(path)
    found = _type_of(weights)
    if found is None:
        raise CheckpointError(f"{path} holds no weights of SAM; those of {model_type} are at {WEIGHTS_PAGE}")
    if found != model_type:
        raise CheckpointError(f"{path} holds SAM's {found}, not {model_type}: ask for model type {found}")
    sam = sam_model_registry[model_type](checkpoint=None)
    try:
        sam.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit SAM's {model_type}: {error}") from None
    return sam, _digest(path)


def _read(path: Path) -> object:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; download it again from {WEIGHTS_PAGE}")
    mapped = zipfile.is_zipfile(path)  # PyTorch's older format cannot be
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, UnpicklingError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no file of weights, or a damaged one ({reason}); download it again from {WEIGHTS_PAGE}"
        ) from None


def _type_of(weights: object) -> str | None:
    """The model type whose image encoder is as wide as that of the weights."""
    position = weights.get("image_encoder.pos_embed") if isinstance(weights, dict) else None
    width = position.shape[-1] if isinstance(position, Tensor) and position.ndim == 4 else None
    return next((name for name, its_width in ENCODER_WIDTHS.items() if its_width == width), None)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
