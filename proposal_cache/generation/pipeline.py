"""Images × generator → a cache: resumable, in several processes, with progress and a summary."""

import os
import sys
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.generation.processes import process_pool
from proposal_cache.generation.sources import ImageError, ImageFile, read_image
from proposal_cache.generators.base import BoxGenerator, Generator
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, Manifest, PatchCache
from proposal_cache.store.failures import read_failures

_AHEAD = 4  # images in work or waiting, per worker: enough that none idles, few enough that memory stays flat
_FAILURES_IN_A_ROW = 10  # of a generator, from which on it is taken to be broken
_COVERAGE_SAMPLE = 200  # images looked at for the summary's coverage

Item = TypeVar("Item")
Result = TypeVar("Result")


class GeneratorError(CacheError):
    """One image that a generator fails on."""


Results: TypeAlias = abc.Generator[tuple[ImageFile, Patches | ImageError | GeneratorError], None, None]


@dataclass(frozen=True)
class Summary:
    """What a cache holds.

    Attributes:
        images: with patches; `failed`: without, since they could not be read or cut.
        patches, bytes: per image, on average.
        coverage: share of an image's pixels that lie in any patch, on average over some images spread over the cache.
    """

    path: Path
    images: int
    failed: int
    patches: float
    bytes: float
    coverage: float

    @classmethod
    def of(cls, cache: PatchCache) -> "Summary":
        """Looks at a cache; reads the patches of a few images only."""
        keys = list(cache)
        sample = keys[:: -(-len(keys) // _COVERAGE_SAMPLE)] if keys else []
        images, manifest = max(len(keys), 1), cache.manifest
        return cls(
            cache.path,
            len(keys),
            len(manifest.failures),
            manifest.patches / images,
            manifest.bytes / images,
            float(np.mean([coverage(cache[key]) for key in sample])) if sample else 0.0,
        )

    def __str__(self) -> str:
        failed = f", {self.failed} failed (see failures in its manifest)" if self.failed else ""
        return (
            f"{self.path}: {self.images} images{failed}, {self.patches:.1f} patches and {self.bytes:.0f} bytes "
            f"per image, {100 * self.coverage:.1f} % of pixels covered"
        )


def coverage(patches: Patches) -> float:
    """Share of the image's pixels that lie in at least one patch."""
    united = Patches.from_rles(patches.height, patches.width, patches.union([range(len(patches))]))
    return int(united.areas[0]) / (patches.height * patches.width)


def generate(
    images: Sequence[ImageFile],
    generator: Generator,
    output: str | os.PathLike[str],
    dataset: str,
    *,
    workers: int = 0,
    loaders: int = 2,
    shard_size: int = 1000,
    rank: int = 0,
    ranks: int = 1,
    progress: bool = True,
) -> None:
    """Makes the patches of all images that the cache does not have yet.

    An image that cannot be read, or that the generator fails on, is reported on stderr and noted in the cache, and the
    rest go on; it is tried again by the next call. Interrupted at any moment, the same call continues. What the cache
    holds in the end depends on images and generator alone. With several ranks, `finalize` makes the cache readable
    when all have returned.

    Args:
        images: of the whole dataset; each rank takes its share. Those with boxes need a `BoxGenerator`.
        generator: makes the patches; it must be picklable if there are workers.
        output: directory of the cache.
        dataset: its name, kept in the manifest.
        workers: processes that read images and make patches; 0: this process makes them, for generators on a GPU.
        loaders: threads that read images ahead where there are no worker processes.
        shard_size: images in a shard.
        rank, ranks: of this process, and how many work on the same cache.
        progress: show a bar on stderr.

    Raises:
        CacheError: where the cache is of another dataset or generator, or the disk is full; where a worker dies, or the
            generator fails on one image after the other.
    """
    if not isinstance(generator, BoxGenerator) and any(image.boxes for image in images):
        raise CacheError(f"the images have boxes, which {type(generator).__name__} does not take; use RefineGenerator")
    share = list(images)[rank::ranks]
    with CacheWriter(output, generator.describe(), dataset, shard_size, rank=rank, ranks=ranks) as writer:
        missing = [image for image in share if image.key not in writer.done]
        results = _in_processes(missing, generator, workers) if workers else _here(missing, generator, loaders)
        bar = tqdm(
            total=len(share),
            initial=len(share) - len(missing),
            desc=f"patches of {dataset}" + (f" (rank {rank})" if ranks > 1 else ""),
            unit="image",
            disable=not progress,
            smoothing=0.1,
        )
        # What failed before is all that is left of a finished run: to fail again says nothing of the generator.
        failed_before = {*Manifest.load(writer.path).failures, *read_failures(writer.path)}
        in_a_row = 0
        with closing(results), bar:
            for image, result in results:
                if isinstance(result, Patches):
                    writer.add(image.key, result)
                    in_a_row = 0
                else:
                    tqdm.write(f"warning: left out: {result}", file=sys.stderr)
                    writer.add_failure(image.key, str(result))
                    in_a_row += isinstance(result, GeneratorError) and image.key not in failed_before
                if in_a_row == _FAILURES_IN_A_ROW:
                    raise CacheError(
                        f"the generator failed on {in_a_row} images in a row, the last one: {result}; mend it and run "
                        "the same command again, or, if it is these images, just run it again to go on without them"
                    )
                bar.update()


def _here(images: Sequence[ImageFile], generator: Generator, loaders: int) -> Results:
    with ThreadPoolExecutor(max(loaders, 1), "loader") as pool:
        for image, content in _ordered(pool, _read, images, max(loaders, 1) * _AHEAD):
            yield image, _cut(generator, image, content)


def _in_processes(images: Sequence[ImageFile], generator: Generator, workers: int) -> Results:
    try:
        with process_pool(workers, _start_worker, (generator,)) as pool:
            yield from _ordered(pool, _work, images, workers * _AHEAD)
    except BrokenProcessPool as error:
        raise CacheError(
            "a worker process died, perhaps for want of memory; run the same command again with fewer --workers: "
            "it continues where it was"
        ) from error


def _ordered(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order, of which at most `ahead` are in work or waiting."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
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


def _read(image: ImageFile) -> NDArray[np.uint8] | ImageError:
    try:
        return read_image(image.path)
    except ImageError as error:
        return error


def _cut(
    generator: Generator, image: ImageFile, content: NDArray[np.uint8] | ImageError
) -> Patches | ImageError | GeneratorError:
    if isinstance(content, ImageError):
        return content
    try:
        if image.boxes and isinstance(generator, BoxGenerator):
            return generator.generate_with_boxes(content, image.boxes)
        return generator(content)
    except Exception as error:  # what a model may raise on an odd image is without end
        return GeneratorError(f"{image.path} cannot be cut into patches: {type(error).__name__}: {error}")


_generator: Generator  # of a worker process


def _start_worker(generator: Generator) -> None:
    global _generator
    _generator = generator


def _work(image: ImageFile) -> Patches | ImageError | GeneratorError:
    return _cut(_generator, image, _read(image))
