"""Engine on one machine: in this process, in a pool of CPU processes, or in one process per GPU."""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError, StorageError
from proposal_cache.generation.engines import GeneratorError, GeneratorFactory, Outcome
from proposal_cache.generation.sources import ImageError, ImageFile, SourceError
from proposal_cache.generation.streams import Source, read_sources
from proposal_cache.generators.base import BoxGenerator
from proposal_cache.generators.base import Generator as PatchGenerator
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter

_AHEAD = 4  # images in progress or queued, per worker: keeps workers busy at constant memory
_GPU_CHUNK = 8  # images per task of a GPU process, within which decoding and encoding overlap with the GPU

Item = TypeVar("Item")
Input: TypeAlias = ImageFile | SourceError
Result: TypeAlias = Patches | CacheError
_Result = TypeVar("_Result")


class LocalEngine:
    """Engine on this machine.

    Args:
        workers: CPU processes; 0 to run the generator in this process.
        devices: one process per device if there are several; otherwise the device of this process.
        loaders: threads per process that decode images ahead of the generator.
    """

    def __init__(self, *, workers: int = 0, devices: Sequence[str] = ("cpu",), loaders: int = 2) -> None:
        self._devices = list(devices) if workers == 0 else ["cpu"] * workers
        self._in_process = workers == 0 and len(devices) == 1
        self._loaders = loaders
        self._chunk = 1 if self._devices[0] == "cpu" else _GPU_CHUNK
        self.tar_images = 0

    def start(self, factory: GeneratorFactory) -> PatchGenerator:
        """Return the generator: that of this process, or one on the CPU."""
        self._factory = factory
        if not self._in_process:
            return factory.build("cpu")
        self._generator = factory.build(self._devices[0])
        return self._generator

    def run(self, sources: Sequence[Source], writer: CacheWriter) -> Generator[Outcome, None, None]:
        """Add the patches of all images to the writer, in order, and yield the outcome of each."""
        in_tars: dict[str, str] = {}
        images = read_sources(sources, writer.done.__contains__, in_tars)
        if self._in_process:
            threads = self._factory.threads
            results = generate_patches(images, self._generator, loaders=self._loaders, threads=threads)
        else:
            results = self._run_processes(images)
        for key, result in results:
            yield Outcome(key, _add(writer, key, result) if isinstance(result, Patches) else result)
        self.tar_images = len(in_tars)

    def _run_processes(self, images: Iterator[Input]) -> Iterator[tuple[str, Result]]:
        devices = SpawnContext().SimpleQueue()
        for device in self._devices:
            devices.put(device)
        chunks = iter(lambda: list(itertools.islice(images, self._chunk)), [])
        with process_pool(len(self._devices), _start_worker, (self._factory, devices, self._loaders)) as pool:
            for results in ordered(pool, _run_worker, chunks, len(self._devices) * _AHEAD):
                yield from results


def generate_patches(
    images: Iterable[Input], generator: PatchGenerator, *, loaders: int = 2, threads: int = 1
) -> Iterator[tuple[str, Result]]:
    """Run a generator over images in this process, in order, while the next images are read and decoded.

    Yields the key of each image and its patches or the error; a SourceError is passed through, with the key "".

    Args:
        loaders: threads that decode images.
        threads: threads that run the generator; 1 to run it in the calling thread.
    """
    generate = partial(_generate, generator)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(loaders) as decoders:
        read = _read_ahead(reader, images, loaders * _AHEAD)
        decoded = ordered(decoders, _decode, read, loaders * _AHEAD)
        if threads == 1:
            yield from map(generate, decoded)
            return
        with ThreadPoolExecutor(threads) as generators:
            yield from ordered(generators, generate, decoded, threads + 1)


def ordered(
    pool: Executor, function: Callable[[Item], _Result], items: Iterable[Item], ahead: int
) -> Iterator[_Result]:
    """Yield the result for each item, in order, with at most `ahead` items in progress or queued."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            if len(waiting) == ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Process pool whose workers ignore Ctrl-C, and exit at once if the block raises or this process is killed.

    Workers are spawned, since forking a process with threads may deadlock. They call `initializer(*initargs)` first.
    Raises CacheError if a worker is killed.
    """
    context = _Context()
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_process, (receiver, initializer, initargs))
    processes, results = pool._processes, pool._result_queue  # which a shutdown removes
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        # In this order: the pool's thread must cancel its futures before it finds out that workers have exited.
        pool.shutdown(wait=False, cancel_futures=True)
        sender.close()
        for process in list(processes.values()):
            process.join()
        # Otherwise that thread waits for the rest of a result that a worker was sending.
        results._writer.close()  # type: ignore[attr-defined]
        if isinstance(error, BrokenProcessPool):
            raise CacheError(
                "a worker process died, probably out of memory; run the same command again with fewer workers: "
                "completed work is kept"
            ) from error
        raise
    finally:
        sender.close()


class _Process(SpawnProcess):
    """Process that ignores the Ctrl-C of a terminal from its start on: it inherits the signal mask of this thread."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process


def _start_process(receiver: Connection, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_exit_when_closed, args=(receiver,), daemon=True).start()
    if initializer:
        initializer(*initargs)


def _exit_when_closed(receiver: Connection) -> None:
    with suppress(EOFError, OSError):
        receiver.recv_bytes()
    os._exit(1)


def _start_worker(factory: GeneratorFactory, devices: "SimpleQueue[str]", loaders: int) -> None:
    global _worker
    device = devices.get()
    try:
        _worker = factory.build(device), loaders, factory.threads
    except Exception as error:  # an exception here would be lost, and the pool be broken
        _worker = CacheError(f"the generator cannot start on {device}: {type(error).__name__}: {error}")


_worker: tuple[PatchGenerator, int, int] | CacheError  # of a worker process: generator, loaders, threads


def _run_worker(images: Sequence[Input]) -> list[tuple[str, Result]]:
    if isinstance(_worker, CacheError):
        raise _worker
    generator, loaders, threads = _worker
    return list(generate_patches(images, generator, loaders=loaders, threads=threads))


def _add(writer: CacheWriter, key: str, patches: Patches) -> GeneratorError | None:
    """Add patches to the writer; return an error if they are invalid, and raise StorageError as `CacheWriter.add`."""
    try:
        writer.add(key, patches)
    except StorageError:
        raise
    except CacheError as error:
        return GeneratorError(str(error))
    return None


def _read_ahead(pool: Executor, items: Iterable[Item], count: int) -> Iterator[Item]:
    """Iterate over items in the pool's one thread, up to `count` items ahead."""
    iterator = iter(items)
    for item in ordered(pool, lambda _: next(iterator, None), itertools.count(), count):
        if item is None:
            return
        yield item


def _decode(image: Input) -> tuple[Input, NDArray[np.uint8] | CacheError]:
    if isinstance(image, SourceError):
        return image, image
    try:
        return image, image.read()
    except ImageError as error:
        return image, error


def _generate(generator: PatchGenerator, decoded: tuple[Input, NDArray[np.uint8] | CacheError]) -> tuple[str, Result]:
    image, pixels = decoded
    if isinstance(image, SourceError):
        return "", image
    if isinstance(pixels, CacheError):
        return image.key, pixels
    try:
        if image.boxes and isinstance(generator, BoxGenerator):
            return image.key, generator.generate_with_boxes(pixels, image.boxes)
        return image.key, generator(pixels)
    except Exception as error:  # a model may raise anything
        return image.key, GeneratorError(f"{image.url} failed in the generator: {type(error).__name__}: {error}")
