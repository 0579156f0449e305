"""What torchrun, srun and mpirun tell a process of itself and the others."""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from proposal_cache.errors import CacheError


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local: its number on its machine, which tells what GPU is its own.
        meeting_point: "host:port", where rank 0 waits for the others; None where nothing tells.
        run: tells this run from other ones at the same meeting point.
        launcher_waits: it is not rank 0 that waits there, but the launcher.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    meeting_point: str | None = None
    run: str = ""
    launcher_waits: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """What torchrun, srun or mpirun say of this process; alone, where none of them started it.

        Raises:
            CacheError: where they contradict themselves.
        """
        launcher = next((one for one in _LAUNCHERS if one.rank in environment and one.sign in environment), None)
        if launcher is None:
            return cls()
        size = next((name for name in launcher.counts if name in environment), launcher.counts[-1])
        rank, count, local = (_number(environment, name) for name in (launcher.rank, size, launcher.local))
        if not 0 <= rank < count:
            raise CacheError(f"{launcher.rank} is {rank}, {size} is {count}: ranks count from 0")
        run = "-".join(environment[name] for name in launcher.run if name in environment)
        waits = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, count, local, _meeting_point(environment, launcher, count, run), run, waits)


@dataclass(frozen=True)
class _Launcher:
    """Names of the variables by which a launcher tells its processes what they are.

    Attributes:
        sign: set by this launcher alone; a SLURM batch script has a SLURM_PROCID, and is no step.
        counts: the number of ranks, in the first of these that is set.
        run: which run it is; alike in all its ranks, different after a restart.
        hosts: SLURM's list of the machines, the first of which has rank 0.
    """

    rank: str
    sign: str
    counts: tuple[str, ...]
    local: str
    run: tuple[str, ...]
    hosts: tuple[str, ...] = ()


# mpirun in a SLURM job starts its own helpers by srun: what those are is not what the ranks are.
_LAUNCHERS = (
    _Launcher(
        "RANK", "WORLD_SIZE", ("WORLD_SIZE",), "LOCAL_RANK", ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    ),
    _Launcher(
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE"),
        ("SLURM_JOB_NODELIST",),
    ),
    _Launcher(
        "SLURM_PROCID",
        "SLURM_STEP_ID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        "SLURM_LOCALID",
        ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
        ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
    ),
)


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts.

    >>> first_host("node[01-03,7],login")
    'node01'
    """
    first = re.match(r"([^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group() if first else hosts)


def _meeting_point(environment: Mapping[str, str], launcher: _Launcher, count: int, run: str) -> str | None:
    hosts = next((environment[name] for name in launcher.hosts if name in environment), None)
    if "MASTER_ADDR" in environment:
        host = environment["MASTER_ADDR"]
    elif hosts:
        host = first_host(hosts)
    elif launcher.hosts and environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", str(count)) == str(count):
        host = "127.0.0.1"
    else:
        return None
    if "MASTER_PORT" in environment:
        return f"{host}:{_number(environment, 'MASTER_PORT')}"
    # All ranks come to the same one. Above 32767 systems choose ports for themselves.
    return f"{host}:{15000 + zlib.crc32(run.encode()) % 17000}"


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment.get(name, "0" if "LOCAL" in name else ""))
    except ValueError:
        raise CacheError(f"the environment variable {name} is {environment.get(name)!r}, not a number") from None
