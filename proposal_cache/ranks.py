"""Several processes, on one machine or many, that fill one cache together."""

import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proposal_cache.errors import CacheError
from proposal_cache.generators.base import Generator
from proposal_cache.pipeline import generate
from proposal_cache.sources import ImageFile
from proposal_cache.store import join

# Ranks finish hours apart, and the first waits for the last.
_PATIENCE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local: its number on its machine, which tells what GPU is its own.
        meeting_point: an URL where they find each other, None for the cache's own directory.
        run: tells this run from other ones with the same cache.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    meeting_point: str | None = None
    run: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """What torchrun, srun or mpirun say of this process; alone, where none of them started it.

        Raises:
            CacheError: where they contradict themselves.
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:  # a batch script itself is no step
            size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
            names = ("SLURM_PROCID", size, "SLURM_LOCALID")
        elif "OMPI_COMM_WORLD_RANK" in environment:
            names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        else:
            return cls()
        rank, count, local = (_number(environment, name) for name in names)
        if not 0 <= rank < count:
            raise CacheError(f"{names[0]} is {rank}, {names[1]} is {count}: ranks count from 0")
        job = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "OMPI_MCA_ess_base_jobid"))
        return cls(rank, count, local, "env://" if "MASTER_ADDR" in environment else None, "-".join(filter(None, job)))


def generate_together(
    ranks: Ranks,
    images: Sequence[ImageFile],
    generator: Generator,
    output: str | os.PathLike[str],
    dataset: str,
    **options: Any,
) -> None:
    """`generate`, each rank with its share of the images; when all are done, rank 0 makes the cache readable.

    Raises:
        CacheError: as `generate`; and where another rank is lost.
    """
    with _connected(ranks, Path(output)) as wait:
        generate(images, generator, output, dataset, rank=ranks.rank, ranks=ranks.count, **options)
        if ranks.count > 1:
            wait()
            if ranks.rank == 0:
                join(output)
            wait()


@contextmanager
def _connected(ranks: Ranks, cache: Path) -> Iterator[Any]:
    """Connects the ranks and yields a function that waits until all have called it.

    Always through gloo, on GPUs too: nothing but the waiting passes through, and while NCCL waits it keeps a GPU busy.
    """
    if ranks.count == 1:
        yield None
        return
    import torch.distributed as dist

    meeting_file = cache / f".meeting-{ranks.run}"
    where = ranks.meeting_point
    try:
        if where is None:
            if not ranks.run:
                raise CacheError("the ranks cannot find each other: set MASTER_ADDR and MASTER_PORT, or use torchrun")
            cache.mkdir(parents=True, exist_ok=True)
            where = meeting_file.resolve().as_uri()
        dist.init_process_group("gloo", init_method=where, rank=ranks.rank, world_size=ranks.count, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"rank {ranks.rank} of {ranks.count} cannot reach the others at {where}: {error}") from error
    try:
        yield lambda: _wait(dist, ranks)
    finally:
        dist.destroy_process_group()
        if ranks.rank == 0:
            meeting_file.unlink(missing_ok=True)


def _wait(dist: Any, ranks: Ranks) -> None:
    try:
        dist.barrier()
    except RuntimeError as error:
        raise CacheError(
            f"rank {ranks.rank} of {ranks.count} has done its share, but another rank was lost: "
            "run the same command again, it continues where it was"
        ) from error


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment.get(name, "0" if "LOCAL" in name else ""))
    except ValueError:
        raise CacheError(f"the environment variable {name} is {environment.get(name)!r}, not a number") from None
