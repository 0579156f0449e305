"""Engine on a cluster, by Ray Data: read, generate in a pool of actors, write shards; Ray retries what is lost."""

import hashlib
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.generation.engines import GeneratorError, GeneratorFactory, Outcome
from proposal_cache.generation.engines.local import generate_patches
from proposal_cache.generation.sources import ImageError, ImageFile, absolute
from proposal_cache.generation.streams import Source, TarShard, duplicate, read_sources
from proposal_cache.generators.base import Generator as PatchGenerator
from proposal_cache.generators.base import descriptions
from proposal_cache.patches import Patches
from proposal_cache.store import CacheWriter
from proposal_cache.store.writer import STAGED, stage_shard

_BLOCK_BYTES = 8 << 20  # of images in a task: some tens of photographs, which is what a lost node loses
_BATCH = 8  # images per call of an actor
_MAX_INPUT_BLOCKS = 1000


class ShardKeys(NamedTuple):
    """Keys of all images in a tar shard, finished ones included."""

    shard: str
    suffixes: dict[str, str]  # of each key


@dataclass(kw_only=True)
class RayEngine:
    """Engine on a Ray cluster whose nodes share the file system of the cache; nodes may join and leave."""

    address: str | None = None  # of the cluster; "auto": of this machine; None: of RAY_ADDRESS or this machine, or new
    actors: tuple[int, int | None] = (1, None)  # minimum and maximum of processes that run the generator
    gpus: float = 0.0  # per actor, which may be a fraction; 0 to run the generator on the CPU
    loaders: int = 2  # threads per actor that decode images
    shard_size: int = 1000
    tar_images: int = field(default=0, init=False)  # see Engine

    def start(self, factory: GeneratorFactory) -> PatchGenerator:
        """Return a generator on the CPU; those that run are built by the actors."""
        self._factory = factory
        generator = factory.build("cpu")
        self._generators = len(descriptions(generator))
        return generator

    def run(self, sources: Sequence[Source], writer: CacheWriter) -> Generator[Outcome, None, None]:
        """Add the patches of all images to the writer, shard by shard, and yield the outcome of each image.

        Write tasks stage shards, and this process moves them into the cache: if a task was executed twice because a
        node was lost, the shard that arrives first counts.
        """
        if not sources:
            return
        try:
            import ray
        except ImportError as error:
            raise CacheError("--engine ray needs Ray: pip install -e '.[ray]' in the checkout") from error
        started = not ray.is_initialized()
        shards: dict[str, str] = {}
        try:
            if started:
                self._connect()
            for batch in self._dataset(sources, writer).iter_batches(batch_size=None, batch_format="pyarrow"):
                for shard in batch.to_pylist():
                    if shard["file"]:
                        writer.commit(writer.path / STAGED / shard["file"].decode())
                    for outcome in pickle.loads(shard["outcomes"]):
                        if isinstance(outcome, ShardKeys):
                            yield from find_duplicates(outcome, shards)
                        else:
                            yield outcome
            self.tar_images = len(shards)
            writer.commit_staged()
            with suppress(OSError):
                (writer.path / STAGED).rmdir()
        except (ray.exceptions.RayError, ConnectionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise CacheError(f"Ray failed: {reason}; the same command continues") from error
        finally:
            if started:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        try:
            ray.init(address=self.address, log_to_driver=False)
        except ValueError as error:
            raise CacheError(f"--ray-address {self.address}: {error}") from error

    def _dataset(self, sources: Sequence[Source], writer: CacheWriter) -> Any:
        import ray

        # The directory of a worker is that in which Ray was started.
        items = [{"source": pickle.dumps(replace(source, url=absolute(source.url)))} for source in sources]
        tars = any(isinstance(source, TarShard) for source in sources)
        done = ray.put(_hashes(writer.done) if tars else np.empty(0, np.uint64))
        low, high = self.actors
        dataset: Any = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_INPUT_BLOCKS))
        dataset.context.target_max_block_size = _BLOCK_BYTES
        return (
            dataset.map_batches(_read, fn_args=(done,), batch_size=1, batch_format="pyarrow", num_cpus=0.5)
            .map_batches(
                _Actor,
                fn_constructor_args=(self._factory, "cuda:0" if self.gpus else "cpu", self.loaders),
                batch_size=_BATCH,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=low, max_size=high),
                num_gpus=self.gpus or None,
                num_cpus=None if self.gpus else 1,
            )
            .map_batches(
                _write,
                fn_args=(writer.path.resolve(), self._generators),
                batch_size=self.shard_size,
                batch_format="pyarrow",
                num_cpus=0.5,
            )
        )


def find_duplicates(keys: ShardKeys, shards: dict[str, str]) -> Iterator[Outcome]:
    """Yield an error for each image whose key another tar shard has; updates `shards`, the shard of each key."""
    for key, suffix in keys.suffixes.items():
        if shards.setdefault(key, keys.shard) != keys.shard:
            yield Outcome("", duplicate(keys.shard, key, suffix))


def _read(batch: Any, done: NDArray[np.uint64]) -> Iterator[Any]:
    """Fetch the images of a table of sources; the images of a tar shard are followed by its keys."""
    for source in map(pickle.loads, batch["source"].to_pylist()):
        suffixes: dict[str, str] = {}
        for image in read_sources([source], lambda key: _contains(done, key), suffixes):
            if isinstance(image, ImageFile):
                with suppress(ImageError):  # the actor reports it
                    image = image.fetch()
            yield _table(image=[pickle.dumps(image)])
        if isinstance(source, TarShard):
            yield _table(image=[pickle.dumps(ShardKeys(source.url, suffixes))])


class _Actor:
    def __init__(self, factory: GeneratorFactory, device: str, loaders: int) -> None:
        self._generate = partial(
            generate_patches, generator=factory.build(device), loaders=loaders, threads=factory.threads
        )

    def __call__(self, batch: Any) -> Any:
        rows = [pickle.loads(row) for row in batch["image"].to_pylist()]
        images = [row for row in rows if not isinstance(row, ShardKeys)]
        results: list[tuple[str, object]] = [("", row) for row in rows if isinstance(row, ShardKeys)]
        results += self._generate(images)
        return _table(result=[pickle.dumps(result) for result in results])


def _write(batch: Any, cache: Path, generators: int) -> Any:
    """Stage a shard of the patches of a table."""
    results = [pickle.loads(result) for result in batch["result"].to_pylist()]
    done = [(key, result) for key, result in results if isinstance(result, Patches)]
    file, errors = stage_shard(cache, done, generators)
    results = [(key, GeneratorError(str(errors[key])) if key in errors else result) for key, result in results]
    outcomes = [
        result if isinstance(result, ShardKeys) else Outcome(key, None if isinstance(result, Patches) else result)
        for key, result in results
    ]
    return _table(file=[file.name.encode() if file else b""], outcomes=[pickle.dumps(outcomes)])


def _table(**columns: list[bytes]) -> Any:
    import pyarrow

    return pyarrow.table({name: pyarrow.array(values, pyarrow.binary()) for name, values in columns.items()})


def _hashes(keys: set[str]) -> NDArray[np.uint64]:
    """Return sorted 64-bit hashes of keys, which all processes of a node share in Ray's memory."""
    return np.sort(np.fromiter(map(_hash, keys), np.uint64, len(keys)))


def _contains(hashes: NDArray[np.uint64], key: str) -> bool:
    place = np.searchsorted(hashes, _hash(key))
    return bool((hashes[place : place + 1] == _hash(key)).any())


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()))
