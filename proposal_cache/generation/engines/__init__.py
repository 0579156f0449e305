"""Interface of the engines, which run a generator over images: `local` on one machine, `ray` on a cluster."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proposal_cache.errors import CacheError
from proposal_cache.generation.streams import Source
from proposal_cache.generators.base import Generator as PatchGenerator
from proposal_cache.store import CacheWriter


class GeneratorError(CacheError):
    """Generator failed on an image."""


class Outcome(NamedTuple):
    """Result of one image; `error` is None if its patches are in the writer."""

    key: str
    error: CacheError | None  # an ImageError, a GeneratorError or, for a tar shard, a SourceError


@dataclass(frozen=True)
class GeneratorFactory:
    """Recipe for a generator, built in each process that runs it, on the device of that process. Must be picklable."""

    build: Callable[[str], PatchGenerator]  # returns the generator on a device ("cpu", "cuda:1")
    # Images that a thread-safe generator may process at the same time, so that one image is run-length encoded while
    # another is on the GPU.
    threads: int = 1


class Engine(Protocol):
    """Way to run a generator over many images.

    Attributes:
        tar_images: number of images that the latest run found in tar shards.
    """

    tar_images: int

    def start(self, factory: GeneratorFactory) -> PatchGenerator:
        """Set the generator to run, and return one like it, which describes the cache."""

    def run(self, sources: Sequence[Source], writer: CacheWriter) -> Generator[Outcome, None, None]:
        """Add the patches of all images to the writer, and yield the outcome of each.

        Images that are in `writer.done` already are skipped in tar shards. Closing the generator ends the work at once.
        """
