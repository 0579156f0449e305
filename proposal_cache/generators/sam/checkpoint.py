"""Loading of SAM and SAM 2 checkpoints, with specific errors."""

from pathlib import Path
from typing import Any

from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import sha256_of
from proposal_cache.generators.sam.lite import build_sam_lite
from proposal_cache.generators.sam.lite_weights import SUFFIX, read_lite
from proposal_cache.generators.sam.mobile import build_mobile_sam
from proposal_cache.torch_files import read_torch_file

MOBILE = "vit_t"
ENCODER_WIDTHS = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
LITE = "lite"
MODEL_TYPES = (*ENCODER_WIDTHS, MOBILE, LITE)  # vit_t is MobileSAM; scripts/train_small_sam.py trains lite
WEIGHTS_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
MOBILE_WEIGHTS_PAGE = "https://github.com/ChaoningZhang/MobileSAM#getting-started"

_LITE_SIZE = "image_encoder.image_size"  # in the state dict of the model type lite only


class CheckpointError(CacheError):
    """Checkpoint is missing, damaged, or of another model type."""


def load_sam(model_type: str, checkpoint: str | Path) -> tuple[Sam, str]:
    """Load a SAM model on the CPU; return it with the SHA-256 of its checkpoint.

    Args:
        model_type: one of `MODEL_TYPES`.
        checkpoint: its file.

    Raises CheckpointError if the file is missing, damaged or of another model type, which the message names.
    """
    path = Path(checkpoint)
    if model_type not in MODEL_TYPES:
        raise CheckpointError(f"SAM has no model type '{model_type}'; choose one of {', '.join(MODEL_TYPES)}")
    if model_type == LITE and not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; train the model type lite with scripts/train_small_sam.py")
    page = MOBILE_WEIGHTS_PAGE if model_type == MOBILE else WEIGHTS_PAGE
    weights = _read_lite(path) if path.suffix == SUFFIX else read_weights(path, "SAM", page)
    found = _model_type(weights)
    if found is None:
        raise CheckpointError(f"{path} is not a SAM checkpoint; the weights of {model_type} are at {page}")
    if found != model_type:
        raise CheckpointError(f"{path} is a checkpoint of {found}, not {model_type}: use model type {found}")
    if model_type == LITE:
        sam = build_sam_lite(int(weights[_LITE_SIZE]))
    else:
        sam = build_mobile_sam() if model_type == MOBILE else sam_model_registry[model_type]()
    try:
        sam.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not match SAM's {model_type}: {error}") from None
    return sam, sha256_of(path)


def _read_lite(path: Path) -> dict[str, Tensor]:
    try:
        return read_lite(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a file of the model type lite, or damaged: {error}") from error


def _model_type(weights: Any) -> str | None:
    """Return the model type of a checkpoint by its image encoder, None if it has none of SAM's."""
    if not isinstance(weights, dict):
        return None
    if "image_encoder.patch_embed.seq.0.c.weight" in weights:
        return MOBILE
    if _LITE_SIZE in weights:
        return LITE
    position = weights.get("image_encoder.pos_embed")
    width = position.shape[-1] if isinstance(position, Tensor) and position.ndim == 4 else None
    return next((name for name, its_width in ENCODER_WIDTHS.items() if its_width == width), None)


def read_weights(path: Path, model: str, page: str) -> Any:
    """Read a checkpoint of a model, SAM or SAM2, without executing code in it.

    Raises CheckpointError, which names `page`, the address of the weights, if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no {model} checkpoint at {path}; the weights are at {page}")
    try:
        return read_torch_file(path, mapped=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a {model} checkpoint, or damaged ({error}); download it again from {page}"
        ) from None
