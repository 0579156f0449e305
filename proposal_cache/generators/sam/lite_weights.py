"""File of weights of the model type `lite`, in half precision.

Layers that equal those of the generator `contours`, which is part of this package, are not repeated.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from segment_anything.modeling import Sam
from torch import Tensor

from proposal_cache.generators.base import sha256_of
from proposal_cache.generators.contours.weights import SHIPPED as CONTOURS
from proposal_cache.store.durable import write_durably
from proposal_cache.torch_files import halve

SUFFIX = ".safetensors"

_THEIRS, _OURS = "network.backbone.", "image_encoder.backbone."  # prefixes of the backbone's tensors
_CONTOURS = "contours.sha256"  # in the metadata: of the weights of `contours` that complete the file


def read_lite(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a model of type `lite`, in half precision.

    Raises:
        ValueError: the file is damaged or of another program, or completed by other weights of `contours`.
    """
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get(_CONTOURS)
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises several types
        raise ValueError(str(error)) from error
    if digest is None:
        raise ValueError("it has no layers of the model type lite")
    if digest != sha256_of(CONTOURS):
        raise ValueError(f"it was written with other weights of the generator contours than {CONTOURS}")
    return _shared() | tensors


def write_lite(path: Path, sam: Sam) -> None:
    """Write a model of type `lite` atomically."""
    halves = halve(sam.state_dict())
    shared = _shared()
    own = {name: t.contiguous() for name, t in halves.items() if name not in shared or not torch.equal(t, shared[name])}
    write_durably(path, save(own, {_CONTOURS: sha256_of(CONTOURS)}))


def _shared() -> dict[str, Tensor]:
    """Return the backbone of the shipped contour network, under the names of a model of type `lite`."""
    tensors = load_file(CONTOURS)
    return {_OURS + name.removeprefix(_THEIRS): t for name, t in tensors.items() if name.startswith(_THEIRS)}
