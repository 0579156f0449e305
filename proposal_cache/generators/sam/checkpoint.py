"""Loading of SAM and SAM 2 checkpoints, with specific errors."""

from pathlib import Path
from typing import Any

from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import sha256_of
from proposal_cache.torch_files import read_torch_file

ENCODER_WIDTHS = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}
WEIGHTS_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"


class CheckpointError(CacheError):
    """Checkpoint is missing, damaged, or of another model type."""


def load_sam(model_type: str, checkpoint: str | Path) -> tuple[Sam, str]:
    """Load a SAM model (vit_h, vit_l or vit_b) on the CPU; return it with the SHA-256 of its checkpoint.

    Raises CheckpointError if the file is missing, damaged or of another model type, which the message names.
    """
    path = Path(checkpoint)
    if model_type not in ENCODER_WIDTHS:
        raise CheckpointError(f"SAM has no model type '{model_type}'; choose one of {', '.join(ENCODER_WIDTHS)}")
    weights = read_weights(path, "SAM", WEIGHTS_PAGE)
    position = weights.get("image_encoder.pos_embed") if isinstance(weights, dict) else None
    width = position.shape[-1] if isinstance(position, Tensor) and position.ndim == 4 else None
    found = next((name for name, its_width in ENCODER_WIDTHS.items() if its_width == width), None)
    if found is None:
        raise CheckpointError(f"{path} is not a SAM checkpoint; the weights of {model_type} are at {WEIGHTS_PAGE}")
    if found != model_type:
        raise CheckpointError(f"{path} is a checkpoint of {found}, not {model_type}: use model type {found}")
    sam = sam_model_registry[model_type]()
    try:
        sam.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} does not match SAM's {model_type}: {error}") from None
    return sam, sha256_of(path)


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
