"""Worker processes that leave Ctrl-C to the process that started them, and never outlive it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import SimpleQueue
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
    """Keeps what it makes for a pool, so that the pool can be ended at once."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: list[_Worker] = []

    def Process(self, *args: Any, **options: Any) -> _Worker:  # type: ignore[override]
        # A daemon is ended, not waited for, by a process that exits before it could call `end`.
        worker = _Worker(*args, daemon=True, **options)
        self._workers.append(worker)
        return worker

    def SimpleQueue(self) -> SimpleQueue[Any]:
        self._results = super().SimpleQueue()
        return self._results

    def end(self) -> None:
        """Kills the workers, whatever they are doing."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        for worker in self._workers:
            if worker.is_alive():
                worker.join()
        # Or the pool's thread would wait for the rest of a result that a worker was sending, and the exit for it.
        self._results._writer.close()  # type: ignore[attr-defined]


@contextmanager
def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes for many images, which Ctrl-C does not reach: the process that made the pool ends them.

    They are spawned, for a forked child of a process with threads may hang; what they are given must pickle. After the
    block all are gone: at once where it ends with an error, and also where the process is killed.

    Args:
        workers: how many.
        initializer, initargs: called once in each.
    """
    context = _Context()
    pool = ProcessPoolExecutor(workers, context, _start, (initializer, initargs))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # first: the pool is not to set errors on what is cancelled
        context.end()
        raise


def _start(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
