"""Several processes fill one cache: real ones, under torchrun and under variables such as SLURM's."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from proposal_cache import CacheError, PatchCache, Patches
from proposal_cache.generation import together
from proposal_cache.generation.ranks import Ranks, first_host
from proposal_cache.generation.sources import from_folder
from proposal_cache.generation.together import generate_together
from proposal_cache.generators.regions import RegionGenerator

SCRIPT = Path(__file__).parents[3] / "scripts/generate_sam_patches.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").touch()
    return folder


def arguments(folder: Path, output: Path) -> list[str]:
    return [str(SCRIPT), "--images", str(folder), "--generator", "regions", "--output", str(output)]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchCache:
    output = tmp_path_factory.mktemp("alone") / "cache"
    subprocess.run([sys.executable, *arguments(folder, output)], check=True, capture_output=True)
    return PatchCache(output)


def same_content(one: PatchCache, other: PatchCache) -> bool:
    return (
        list(one) == list(other)
        and all(one[key].rles == other[key].rles for key in one)
        and one.manifest.failures == other.manifest.failures
        and one.manifest.generators == other.manifest.generators
    )


def test_two_ranks_under_torchrun(folder: Path, tmp_path: Path, alone: PatchCache) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node",
        "2",
    ]
    result = subprocess.run([*torchrun, *arguments(folder, tmp_path / "cache")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("5 images, 1 failed") == 1  # rank 0 speaks for all
    together = PatchCache(tmp_path / "cache")
    assert {shard.file[:10] for shard in together.manifest.shards} == {"shard-r000", "shard-r001"}
    assert same_content(alone, together)


def start_rank(rank: int, folder: Path, output: Path, **environment: str) -> subprocess.Popen[str]:
    """One of two ranks as srun starts it; `environment` adds to its variables."""
    slurm = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank)}
    return subprocess.Popen(
        [sys.executable, *arguments(folder, output)],
        env={**os.environ, **slurm, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_well(process: subprocess.Popen[str]) -> bool:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return True


def test_two_ranks_under_slurms_variables(folder: Path, tmp_path: Path, alone: PatchCache) -> None:
    processes = [start_rank(rank, folder, tmp_path / "cache", SLURM_STEP_NODELIST="localhost") for rank in (0, 1)]
    assert all(ends_well(process) for process in processes)
    assert same_content(alone, PatchCache(tmp_path / "cache"))


def test_a_requeued_job_continues(folder: Path, tmp_path: Path, alone: PatchCache) -> None:
    """Killed at work and started again with the same variables, where an earlier version left its meeting file."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".meeting-17-0").write_bytes(b"left over")
    processes = [start_rank(rank, folder, cache) for rank in (0, 1)]
    while not list(cache.glob(".lock-r00*")):  # they have met
        assert processes[0].poll() is None
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.communicate()
    processes = [start_rank(rank, folder, cache) for rank in (0, 1)]
    assert all(ends_well(process) for process in processes)
    assert same_content(alone, PatchCache(cache))


def test_ctrl_c_ends_the_wait_for_a_rank_that_never_comes(folder: Path, tmp_path: Path) -> None:
    process = start_rank(1, folder, tmp_path / "cache", SLURM_JOB_ID="18")
    assert process.stderr is not None
    assert "rank 1 of 2: waiting for rank 0 at 127.0.0.1:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=10)[1]


class Generator:
    """Under the name of the script's: no patches, at once or as late as it is told; or a failure before any image."""

    def __init__(self, error: Exception | None = None, until: threading.Event | None = None) -> None:
        self.error, self.until = error, until

    def describe(self) -> dict[str, Any]:
        if self.error:
            raise self.error
        return RegionGenerator().describe()

    def __call__(self, image: np.ndarray) -> Patches:
        if self.until:
            self.until.wait()
        return Patches.from_rles(*image.shape[:2], [])


@pytest.fixture
def meeting_point() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


Start = Callable[..., "Future[None]"]


@pytest.fixture
def start(folder: Path, tmp_path: Path, meeting_point: str) -> Iterator[Start]:
    """Starts one of two ranks in a thread, with a generator and without some of the images."""
    images = from_folder(folder)
    with ThreadPoolExecutor() as pool:
        yield lambda rank, generator, without=0: pool.submit(
            generate_together,
            Ranks(rank, 2, meeting_point=meeting_point),
            images[without:],
            generator,
            tmp_path / "cache",
            folder.name,
            progress=False,
        )


def test_a_rank_that_never_comes(start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(together, "_MEETING", 0.6)
    with pytest.raises(CacheError, match="rank 0 of 2 waited 0.01 minutes for the others, and rank 1 did not come"):
        start(0, Generator()).result(30)
    assert capfd.readouterr().err.count("rank 0 of 2: waiting for 1 other rank") == 1
    with pytest.raises(CacheError, match="rank 1 of 2 waited 0.01 minutes for rank 0 at 127.0.0.1"):
        start(1, Generator()).result(30)


def test_rank_0_leaves_before_all_have_come(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: object) -> None:
        raise RuntimeError("connection reset by peer")

    monkeypatch.setattr(together._Meeting, "start", gone)
    with pytest.raises(CacheError, match="rank 0 of 2: rank 0 left .* before all had come"):
        start(0, Generator()).result(30)


def test_ranks_that_see_other_images(start: Start, folder: Path, tmp_path: Path) -> None:
    """Each would take its share of its own list, and some images would be in none."""
    whole, less = start(0, Generator()), start(1, Generator(), without=1)
    for rank in (whole, less):
        with pytest.raises(CacheError, match=r"different images: rank 0 has 6 \(\w{8}\), rank 1 has 5 \(\w{8}\); give"):
            rank.result(30)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fails", [0, 1])
def test_a_rank_that_fails(start: Start, fails: int) -> None:
    good, bad = start(1 - fails, Generator()), start(fails, Generator(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(30)
    with pytest.raises(CacheError, match=rf"rank {fails} failed \(out of memory\); run the same command again"):
        good.result(30)


def test_a_rank_that_falls_silent(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    awake = threading.Event()
    monkeypatch.setattr(together, "_LOST", 1.5)
    monkeypatch.setattr(together._Meeting, "beat", lambda *_: None)
    waiting, silent = start(1, Generator()), start(0, Generator(until=awake))
    try:
        with pytest.raises(CacheError, match="gave no sign of life"):
            waiting.result(30)
    finally:
        awake.set()
    with pytest.raises(CacheError, match="run the same command again"):
        silent.result(30)


def test_a_network_that_is_cut(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls to the meeting point do not return then, and nobody can be told."""
    awake, cut, mended = threading.Event(), threading.Event(), threading.Event()
    check = dist.PrefixStore.check

    def hang(store: dist.PrefixStore, keys: list[str]) -> bool:
        if keys[0].startswith("done"):  # not before, while rank 0 may still look whether rank 1 has come
            cut.set()
        if cut.is_set() and keys[0].startswith(("done", "failure")):
            mended.wait()
        return check(store, keys)

    monkeypatch.setattr(together, "_LOST", 1.0)
    monkeypatch.setattr(together, "_BEAT", 0.1)
    monkeypatch.setattr(dist.PrefixStore, "check", hang)
    working, waiting = start(0, Generator(until=awake)), start(1, Generator())
    try:
        with pytest.raises(CacheError, match="rank 1 of 2: 127.0.0.1:.*, where the ranks meet, is gone"):
            waiting.result(20)
    finally:
        mended.set()
        awake.set()
    with pytest.raises(CacheError, match="rank 1 gave no sign of life for 1 s"):
        working.result(30)


def test_ctrl_c_where_nothing_answers(folder: Path, tmp_path: Path) -> None:
    """The rank that keeps the meeting point is stopped, which to the other one is as if the network were cut."""
    cache = tmp_path / "cache"
    keeper, waiting = (start_rank(rank, folder, cache, SLURM_JOB_ID="19") for rank in (0, 1))
    try:
        while not list(cache.glob(".lock-r001")):  # they have met
            assert waiting.poll() is None
            time.sleep(0.01)
        keeper.send_signal(signal.SIGSTOP)
        while not list(cache.glob("shard-r001-*.h5")):
            assert waiting.poll() is None
            time.sleep(0.01)
        time.sleep(1)  # it waits by now
        waiting.send_signal(signal.SIGINT)
        assert "interrupted" in waiting.communicate(timeout=40)[1]
    finally:
        keeper.kill()
        keeper.communicate()


def test_a_rank_that_works_long(start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    awake = threading.Event()
    monkeypatch.setattr(together, "_LOST", 0.8)
    monkeypatch.setattr(together, "_BEAT", 0.1)
    waiting, working = start(1, Generator()), start(0, Generator(until=awake))
    with pytest.raises(TimeoutError):
        waiting.result(2.5)
    awake.set()
    waiting.result(30)
    working.result(30)
    assert "rank 1 of 2: its share is done, waiting for 1 other rank" in capfd.readouterr().err


def test_ctrl_c_ends_the_wait_for_a_rank_that_works(
    start: Start, folder: Path, tmp_path: Path, meeting_point: str
) -> None:
    awake = threading.Event()
    working = start(1, Generator(until=awake))
    host, port = meeting_point.split(":")
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": port}
    process = start_rank(0, folder, tmp_path / "cache", **variables)
    try:
        assert process.stderr is not None
        while "its share is done, waiting for 1 other rank" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.communicate(timeout=10)[1]
    finally:
        awake.set()
    with pytest.raises(CacheError, match="rank 1 of 2: .*; run the same command again"):
        working.result(30)


SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


def test_what_the_launchers_say() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
    assert Ranks.from_environment(torchrun) == Ranks(3, 8, 1, "a:5")
    torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert Ranks.from_environment(torchrun) == Ranks(3, 8, 1, "a:5", "x-2", True)
    slurm = Ranks.from_environment(SLURM)
    assert (slurm.rank, slurm.count, slurm.run) == (2, 4, "9-1")
    assert Ranks.from_environment(MPI).rank == 1
    assert Ranks.from_environment({**SLURM, **MPI}).rank == 1  # mpirun in a job of SLURM
    assert Ranks.from_environment({}) == Ranks()
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # outside of srun: the only process there is
    assert Ranks.from_environment(batch_script) == Ranks()


def test_where_ranks_meet() -> None:
    def host(variables: dict[str, str]) -> str | None:
        point = Ranks.from_environment(variables).meeting_point
        return point and point.partition(":")[0]

    assert host({**SLURM, "SLURM_STEP_NODELIST": "node[03-05],a", "SLURM_JOB_NODELIST": "node[01-05]"}) == "node03"
    assert host({**SLURM, "SLURM_JOB_NODELIST": "node7"}) == "node7"
    assert host({**SLURM, "MASTER_ADDR": "chosen"}) == "chosen"
    assert host(SLURM) == host(MPI) == "127.0.0.1"
    assert host({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}) is None
    assert host({"RANK": "0", "WORLD_SIZE": "2"}) is None
    points = {Ranks.from_environment({**SLURM, "SLURM_JOB_ID": str(job)}).meeting_point for job in range(100)}
    assert len(points) > 95, "jobs on one machine have ports of their own"
    again = Ranks.from_environment({**SLURM, "SLURM_RESTART_COUNT": "1"})
    assert again.run != Ranks.from_environment(SLURM).run


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-03,7]", "node01"),
        ("node[9,11-12]-ib.cluster,login", "node9-ib.cluster"),
        ("rack[2-3]n[005-010]", "rack2n005"),
    ],
)
def test_first_of_slurms_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_ranks_that_cannot_find_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="set MASTER_ADDR and MASTER_PORT"):
        generate_together(Ranks(0, 2), from_folder(folder), Generator(), tmp_path, "toy")


def test_a_port_that_is_taken(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        point = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CacheError, match=f"cannot meet the others at {point}.*MASTER_PORT to a free port"):
            generate_together(Ranks(0, 2, meeting_point=point), from_folder(folder), Generator(), tmp_path, "toy")


def test_variables_that_make_no_sense() -> None:
    with pytest.raises(CacheError, match="WORLD_SIZE is 'many', not a number"):
        Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "many"})
    with pytest.raises(CacheError, match="RANK is 2, WORLD_SIZE is 2"):
        Ranks.from_environment({"RANK": "2", "WORLD_SIZE": "2"})
