"""Smaller batches of a generator when memory runs out."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

_Result = TypeVar("_Result")
# Parts of the messages of RuntimeErrors by PyTorch's allocators, CUDA and cuBLAS.
_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def halving_batches(run: Callable[[], _Result], halve: Callable[[], int]) -> _Result:
    """Return `run()`; when memory runs out, call it again with half the batch, and say so on stderr.

    Args:
        run: computes the result, with a batch size that `halve` changes.
        halve: halves the batch size for this and all later images and returns it, or 0 if it was 1.

    Raises:
        The error of `run` if memory runs out with a batch of 1.
    """
    while True:
        try:
            return run()
        except Exception as error:
            if not is_out_of_memory(error) or not (batch := halve()):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        # Here the error, and with it the frames that hold the batch, is gone.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        tqdm.write(f"warning: out of memory ({reason}); continuing with batches of {batch} prompts", file=sys.stderr)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that the memory of the CPU or a GPU is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)
