"""Files of weights: those of torch.save, read without running code and written atomically, and half precision."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proposal_cache.store.durable import atomic_file


def halve(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to half precision, except those with values above its range.

    Running variances can be; as infinities they would stay so in a training that continues from the file.
    """
    return {name: _half(tensor) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.isfinite(), tensor.isfinite()) else tensor


def read_torch_file(path: str | os.PathLike[str], *, mapped: bool = False) -> Any:
    """Read a file of torch.save without running code from it, after a check of its checksums.

    torch.load itself ignores the checksums of the zip format, so that weights with flipped bits would be loaded.

    Args:
        path: of the file.
        mapped: map the file into memory, if it is of the zip format, instead of copying it.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is empty, damaged or of another format, or holds objects that need code; the message is short.
    """
    if not Path(path).stat().st_size:
        raise ValueError("it is empty")
    zipped = zipfile.is_zipfile(path)  # PyTorch's older format is not, and has no checksums
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"its part {damaged} has a wrong checksum")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
    except Exception as error:  # a damaged file raises almost any exception
        raise ValueError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


def write_torch_file(path: Path, content: Any) -> None:
    """Write a file of torch.save atomically.

    Raises:
        StorageError: the disk is full, or the file cannot be written.
    """
    with atomic_file(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of PyTorch's writer, which hides the error of the system
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
