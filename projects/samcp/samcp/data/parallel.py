"""Parallel map over many images."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from proposal_cache.generation.engines.local import process_pool

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    items: Sequence[Item], function: Callable[[Item], Result], *, workers: int, title: str
) -> list[Result]:
    """Apply a function to every item, with a progress bar.

    Args:
        items: arguments, one per call; with several workers they are pickled.
        function: the function; with several workers it is pickled once per worker.
        workers: number of processes; 1 runs in this process.
        title: of the progress bar.

    Returns:
        The results in the order of ``items``.

    Raises:
        CacheError: a worker process was killed, such as for the memory it used.
    """
    progress = {"total": len(items), "desc": title, "unit": "image", "mininterval": 1}
    if workers == 1:
        return list(tqdm(map(function, items), **progress))
    with process_pool(workers, _start_worker, (function,)) as pool:
        return list(tqdm(pool.map(_call_in_worker, items, chunksize=8), **progress))


_function: Callable[[Any], Any]  # of a worker process; sent once, since it may hold a patch cache


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _call_in_worker(item: Any) -> Any:
    return _function(item)
