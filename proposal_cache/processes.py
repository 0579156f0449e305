"""Worker processes that leave Ctrl-C to the process that started them."""

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


class _Worker(SpawnProcess):
    """A terminal sends Ctrl-C to workers too, which must not hear it even while they import.

    So they are started with the signal blocked: a new process inherits that from the thread that starts it.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Worker


def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Processes for many images, which Ctrl-C does not reach: the process that made the pool ends them.

    They are spawned, for a forked child of a process with threads may hang; what they are given must pickle.

    Args:
        workers: how many.
        initializer, initargs: called once in each.
    """
    return ProcessPoolExecutor(workers, _Context(), initializer, initargs)
