"""Fixed shares of the images for schedulers that start many processes, such as torchrun and Slurm.

Each process works on its part without a connection to the others, and writes its own shards. When all parts are
finished, the last one, or `proposal-cache finalize`, makes the cache readable.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from proposal_cache.errors import CacheError
from proposal_cache.generation.streams import Source, TarShard
from proposal_cache.store import PatchCache, finalize
from proposal_cache.store.durable import list_directory, remove, write_durably

_MARK = re.compile(r"part-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 0; written as "index/count"."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise CacheError(f"part {self}: parts are counted from 0, so use 0 to {self.count - 1}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Return the part that a text names.

        >>> from proposal_cache.generation.parts import Part
        >>> Part.parse("3/8")
        Part(index=3, count=8)
        """
        numbers = re.fullmatch(r"(\d+)/(\d+)", text)
        if not numbers:
            raise CacheError(f"a part is written as I/N, such as 0/8, not {text!r}")
        return cls(int(numbers[1]), int(numbers[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Part":
        """Return the part of this process in a Slurm array, under torchrun, or under srun; 0/1 in none of them.

        An array of jobs each of which starts several processes has one part per process.
        """
        array = cls()
        if "SLURM_ARRAY_TASK_ID" in environment:
            names = ("ID", "MIN", "STEP", "COUNT")
            task, first, step, tasks = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in names)
            if (task - first) % step or not 0 <= (task - first) // step < tasks:
                raise CacheError(f"the Slurm array is not a regular range, so that task {task} needs --part I/N")
            array = cls((task - first) // step, tasks)
        process = cls()
        if "RANK" in environment and "WORLD_SIZE" in environment:
            process = cls(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"))
        elif "SLURM_STEP_NUM_TASKS" in environment:  # a batch script has SLURM_PROCID too, but is not a step
            process = cls(_number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS"))
        return cls(array.index * process.count + process.index, array.count * process.count)


@dataclass(frozen=True)
class _Mark:
    """File that says that a part is finished."""

    sources: int  # of all parts
    sha256: str  # of their names
    tar_images: int  # in the tar files of this part


def start_part(cache: Path, part: Part, sources: Sequence[Source]) -> None:
    """Mark a part as unfinished, and every part that finished with other sources or is of another number of parts.

    `sources` are those of all parts. The caller holds the lock of the part's rank.
    """
    remove(_path(cache, part))
    for other, mark in _marks(cache).items():
        if other.count != part.count:
            remove(_path(cache, other))
        elif mark.sha256 != _hash(sources):
            print(
                f"warning: {cache}: part {other} finished with {mark.sources} images or tar files, part {part} has "
                f"{len(sources)} or others: part {other} must run again",
                file=sys.stderr,
            )
            remove(_path(cache, other))


def finish_part(cache: Path, part: Part, sources: Sequence[Source], tar_images: int = 0) -> bool:
    """Mark a part as finished; if all parts are, finalize the cache and return True.

    Args:
        cache: its directory.
        part: the part.
        sources: those of all parts.
        tar_images: number of images in the tar files of this part.

    Raises:
        CacheError: the last part finds that a part that started before it was given other sources, or that tar files of
            different parts have images with the same key.
    """
    mark = _Mark(len(sources), _hash(sources), tar_images)
    write_durably(_path(cache, part), json.dumps(asdict(mark)).encode())
    marks = {other: mark for other, mark in _marks(cache).items() if other.count == part.count}
    if len(marks) < part.count:
        return False
    for other, others in marks.items():
        if others.sha256 != mark.sha256:
            raise CacheError(
                f"part {other} was given {others.sources} images or tar files, part {part} {len(sources)} or others, "
                f"so the cache {cache} may lack some: run all parts again with the same images"
            )
    finalize(cache)
    readable = PatchCache(cache)
    lost = sum(mark.tar_images for mark in marks.values()) - len(readable) - len(readable.manifest.failures)
    if lost > 0:
        raise CacheError(
            f"{cache} lacks {lost} images of the tar files, since others have the same keys; keys must be unique over "
            "all tar files: rename the images"
        )
    return True


def unfinished_parts(cache: Path) -> list[Part]:
    """Return the parts that are not finished; none if the cache was not made in parts."""
    finished = _marks(cache)
    count = max((part.count for part in finished), default=0)
    return [part for part in (Part(index, count) for index in range(count)) if part not in finished]


def _hash(sources: Sequence[Source]) -> str:
    names = "\n".join(repr(source.url if isinstance(source, TarShard) else source.key) for source in sources)
    return hashlib.sha256(names.encode()).hexdigest()


def _marks(cache: Path) -> dict[Part, _Mark]:
    """Return the marks of finished parts."""
    found = [(path, _MARK.fullmatch(path.name)) for path in list_directory(cache)]
    marks = {Part(int(name[1]), int(name[2])): _read_mark(path) for path, name in found if name}
    return {part: mark for part, mark in marks.items() if mark is not None}


def _read_mark(path: Path) -> _Mark | None:
    """Return a mark; None if another part has removed it meanwhile."""
    try:
        mark = _Mark(**json.loads(path.read_bytes()))
        if not isinstance(mark.tar_images, int):
            raise TypeError("tar_images is not a number")
        return mark
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheError(f"{path}: damaged ({error}); delete it, and run this part again") from error


def _path(cache: Path, part: Part) -> Path:
    return cache / f"part-{part.index:05d}-of-{part.count:05d}.json"


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise CacheError(f"the environment variable {name} is {value!r}, not a number")
    return int(value)
