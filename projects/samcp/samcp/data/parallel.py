"""Parallel map over many images."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from proposal_cache.generation.engines.local import process_pool

Source = TypeVar("Source")
Result = TypeVar("Result")


def parallel_map(
    sources: Sequence[Source], convert: Callable[[Source], Result], *, workers: int, title: str
) -> list[Result]:
    """Apply a function to every source, in order, under a bar of progress.

    Args:
        convert: with several workers, something that pickles.
        workers: processes.
        title: of the bar.
    """
    progress = {"total": len(sources), "desc": title, "unit": "image", "mininterval": 1}
    if workers == 1:
        return list(tqdm(map(convert, sources), **progress))
    with process_pool(workers, _start_worker, (convert,)) as pool:
        return list(tqdm(pool.map(_convert_in_worker, sources, chunksize=8), **progress))


_convert: Callable[[Any], Any]  # of a worker process, which gets it once: with it may come a patch cache to open


def _start_worker(convert: Callable[[Any], Any]) -> None:
    global _convert
    _convert = convert


def _convert_in_worker(source: Any) -> Any:
    return _convert(source)
