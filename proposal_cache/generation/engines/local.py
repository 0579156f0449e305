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
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.generation.engines import GeneratorError, GeneratorFactory, Outcome
from proposal_cache.generation.sources import ImageError, SourceError
from proposal_cache.generation.streams import Source, SourceImage, read_sources
from proposal_cache.generators.base import BoxGenerator
from proposal_cache.generators.base import Generator as PatchGenerator
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter

_AHEAD = 4  # images in progress or queued, per worker: keeps workers busy at constant memory
_GPU_CHUNK = 8  # images per task of a GPU process, within which decoding and encoding overlap with the GPU

Item = TypeVar("Item")
Input: TypeAlias = SourceImage | SourceError
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

    def start(self, factory: GeneratorFactory) -> PatchGenerator:
        """Return the generator: that of this process, or one on the CPU."""
        self._factory = factory
        if not self._in_process:
            return factory.build("cpu")
        self._generator = factory.build(self._devices[0])
        return self._generator

    def run(self, sources: Sequence[Source], writer: CacheWriter) -> Generator[Outcome, None, None]:
        """Add the patches of all images to the writer, in order, and yield the outcome of each."""
        images = read_sources(sources, writer.done.__contains__)
        if self._in_process:
            threads = self._factory.threads
            results = generate_patches(images, self._generator, loaders=self._loaders, threads=threads)
        else:
            results = self._run_processes(images)
        for image, result in results:
            key = "" if isinstance(image, SourceError) else image.key
            if isinstance(result, Patches):
                writer.add(key, result)
            yield Outcome(key, None if isinstance(result, Patches) else result)

    def _run_processes(self, images: Iterator[Input]) -> Iterator[tuple[Input, Result]]:
        context = SpawnContext()
        devices = context.SimpleQueue()
        for device in self._devices:
            devices.put(device)
        chunks = iter(lambda: list(itertools.islice(images, self._chunk)), [])
        try:
            with process_pool(len(self._devices), _start_worker, (self._factory, devices, self._loaders)) as pool:
                for chunk, results in ordered(pool, _run_worker, chunks, len(self._devices) * _AHEAD):
                    yield from zip(chunk, results, strict=True)
        except BrokenProcessPool as error:
            raise CacheError(
                "a worker process died, probably out of memory; run the same command again with fewer workers: "
                "it continues where it was"
            ) from error


def generate_patches(
    images: Iterable[Input], generator: PatchGenerator, *, loaders: int = 2, threads: int = 1
) -> Iterator[tuple[Input, Result]]:
    """Run a generator over images in this process, in order, while the next images are read and decoded.

    Args:
        images: to process; a SourceError is passed through.
        generator: to run.
        loaders: threads that decode images.
        threads: threads that run the generator; 1 to run it in the calling thread.

    Yields:
        Each image and its patches, or the error.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(loaders) as decoders:
        read = _read_ahead(reader, images, loaders * _AHEAD)
        decoded = ordered(decoders, _decode, read, loaders * _AHEAD)
        if threads == 1:
            for image, pixels in decoded:
                yield image, _generate(generator, image, pixels)
            return
        with ThreadPoolExecutor(threads) as generators:
            for (image, _), result in ordered(
                generators, lambda pair: _generate(generator, *pair), decoded, threads + 1
            ):
                yield image, result


def ordered(
    pool: Executor, function: Callable[[Item], _Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, _Result]]:
    """Yield each item with its result, in order, with at most `ahead` of them in progress or queued."""
    waiting: deque[tuple[Item, Future[_Result]]] = deque()
    try:
        for item in items:
            if len(waiting) == ahead:
                first, future = waiting.popleft()
                yield first, future.result()
            waiting.append((item, pool.submit(function, item)))
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


@contextmanager
def process_pool(
    workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Process pool whose workers ignore Ctrl-C, and exit at once if the block raises or this process is killed.

    Workers are spawned, since forking a process with threads may deadlock.

    Args:
        workers: number of processes.
        initializer, initargs: called in each process; must be picklable.
    """
    context = _Context()
    receiver, sender = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_process, (receiver, initializer, initargs))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        # In this order: the pool's thread must cancel its futures before it finds out that workers have exited.
        pool.shutdown(wait=False, cancel_futures=True)
        sender.close()
        for process in context.processes:
            process.join()
        # Otherwise that thread waits for the rest of a result that a worker was sending.
        context.results._writer.close()  # type: ignore[attr-defined]
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
    """Spawn context that remembers the pool's processes and its queue of results."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[_Process] = []

    def Process(self, *args: Any, **options: Any) -> _Process:  # type: ignore[override]
        self.processes.append(_Process(*args, **options))
        return self.processes[-1]

    def SimpleQueue(self) -> "SimpleQueue[Any]":
        self.results = super().SimpleQueue()
        return self.results


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
    _worker = factory.build(devices.get()), loaders, factory.threads


_worker: tuple[PatchGenerator, int, int]  # of a worker process: generator, loaders, threads


def _run_worker(images: Sequence[Input]) -> list[Result]:
    generator, loaders, threads = _worker
    return [result for _, result in generate_patches(images, generator, loaders=loaders, threads=threads)]


def _read_ahead(pool: Executor, items: Iterable[Item], count: int) -> Iterator[Item]:
    """Iterate over items in the pool's one thread, up to `count` items ahead."""
    iterator = iter(items)
    for _, item in ordered(pool, lambda _: next(iterator, None), itertools.count(), count):
        if item is None:
            return
        yield item


def _decode(image: Input) -> NDArray[np.uint8] | CacheError:
    if isinstance(image, SourceError):
        return image
    try:
        return image.read()
    except ImageError as error:
        return error


def _generate(generator: PatchGenerator, image: Input, pixels: NDArray[np.uint8] | CacheError) -> Result:
    if isinstance(image, SourceError):
        return image
    if isinstance(pixels, CacheError):
        return pixels
    try:
        if image.boxes and isinstance(generator, BoxGenerator):
            return generator.generate_with_boxes(pixels, image.boxes)
        return generator(pixels)
    except Exception as error:  # a model may raise anything
        return GeneratorError(f"{image.url} failed in the generator: {type(error).__name__}: {error}")
