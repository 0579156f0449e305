"""Generation of a cache: find the missing images, run an engine, write the patches."""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from proposal_cache.errors import CacheError
from proposal_cache.generation.engines import Engine, GeneratorError, GeneratorFactory
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.parts import Part, finish_part, start_part
from proposal_cache.generation.sources import SourceError
from proposal_cache.generation.streams import Source, TarShard
from proposal_cache.generators.base import BoxGenerator, Generator
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter, Manifest, PatchCache
from proposal_cache.store.finalize import read_failures

_FAILURES_IN_A_ROW = 10  # after which the generator is considered broken
_COVERAGE_SAMPLE = 200  # images that the coverage of a cache is estimated from


def summary(cache: PatchCache) -> str:
    """Return the statistics of a cache in one line."""
    manifest, images = cache.manifest, max(len(cache), 1)
    failed = f", {len(manifest.failures)} failed (see failures in its manifest)" if manifest.failures else ""
    return (
        f"{cache.path}: {len(cache)} images{failed}, {manifest.patches / images:.1f} patches and "
        f"{manifest.bytes / images:.0f} bytes per image, {100 * mean_coverage(cache):.1f} % of pixels covered"
    )


def mean_coverage(cache: PatchCache) -> float:
    """Return the mean `coverage` of a sample of images."""
    keys = list(cache)
    sample = keys[:: max(-(-len(keys) // _COVERAGE_SAMPLE), 1)]
    return float(np.mean([coverage(cache[key]) for key in sample])) if sample else 0.0


def coverage(patches: Patches) -> float:
    """Return the share of the image's pixels that are in at least one patch."""
    united = Patches.from_rles(patches.height, patches.width, patches.union([range(len(patches))]))
    return int(united.areas[0]) / (patches.height * patches.width)


def generate(
    sources: Sequence[Source],
    generator: Generator | GeneratorFactory,
    output: str | os.PathLike[str],
    dataset: str,
    *,
    engine: Engine | None = None,
    part: Part | None = None,
    shard_size: int = 1000,
    progress: bool = True,
) -> bool:
    """Generate the patches of all images that are missing in a cache, created if there is none.

    Images that cannot be read, or that the generator fails on, are reported on stderr, recorded in the cache and tried
    again by the next call. If interrupted, the same call continues. The content of the cache depends only on images and
    generator, not on the engine.

    Args:
        sources: images and tar shards of the whole dataset; images with boxes need a `BoxGenerator`.
        generator: creates the patches; it must be picklable if the engine starts processes. Or a recipe for it.
        engine: where to run the generator; None for this process.
        part: process this share of the sources only; the last part to finish makes the cache readable.

    Returns:
        True if the cache is readable; False if other parts are not finished.

    Raises:
        CacheError: if the cache is of another dataset or generator, the disk is full, a worker process died, or the
            generator fails on many images in a row, or the parts were given different images or tar files with the same
            keys.
        SourceError: if images of tar shards could not be read or have the same key; all others are done then.
    """
    engine, part = engine or LocalEngine(), part or Part()
    factory = generator if isinstance(generator, GeneratorFactory) else GeneratorFactory(partial(_same, generator))
    example = engine.start(factory)
    if not isinstance(example, BoxGenerator) and any(not isinstance(s, TarShard) and s.boxes for s in sources):
        raise CacheError(f"{type(example).__name__} does not accept boxes; use RefineGenerator")
    with CacheWriter(output, example.describe(), dataset, shard_size, rank=part.index, ranks=part.count) as writer:
        start_part(writer.path, part, sources)
        if part.count == 1:
            writer.commit_staged()
        title = f"patches of {dataset}" + (f" (part {part})" if part.count > 1 else "")
        unread = _run(engine, sources[part.index :: part.count], writer, title if progress else None)
    if unread:
        raise SourceError(f"{len(unread)} images or tar shards were not read, the first one: {unread[0]}")
    return part.count == 1 or finish_part(Path(output), part, sources, engine.tar_images)


def _run(engine: Engine, share: Sequence[Source], writer: CacheWriter, title: str | None) -> list[CacheError]:
    """Run an engine over what is missing, with a progress bar of this title, and return the errors of tar shards."""
    missing = [source for source in share if isinstance(source, TarShard) or source.key not in writer.done]
    total = None if any(isinstance(source, TarShard) for source in missing) else len(share)
    bar = tqdm(
        desc=title, total=total, initial=len(share) - len(missing), unit="image", disable=title is None, smoothing=0.1
    )
    unread: list[CacheError] = []
    # Images that failed in an earlier run do not count: they may fail again with a generator that is not broken.
    failed_before = {*Manifest.load(writer.path).failures, *read_failures(writer.path)}
    in_a_row = 0
    with bar, closing(engine.run(missing, writer)) as outcomes:
        for key, error in outcomes:
            if error:
                tqdm.write(f"warning: skipped: {error}", file=sys.stderr)
            if isinstance(error, SourceError):
                unread.append(error)
                continue
            bar.update()
            if error is None:
                in_a_row = 0
                continue
            writer.add_failure(key, str(error))
            in_a_row += isinstance(error, GeneratorError) and key not in failed_before
            if in_a_row == _FAILURES_IN_A_ROW:
                raise CacheError(
                    f"the generator failed on {in_a_row} images in a row, the last one: {error}; fix it and run the "
                    "same command again. If these images are the cause, run it again without a change to skip them"
                )
    return unread


def _same(generator: Generator, _device: str) -> Generator:
    return generator
