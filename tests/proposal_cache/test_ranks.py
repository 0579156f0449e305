"""Several processes fill one cache: real ones, under torchrun and under variables such as SLURM's."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proposal_cache import CacheError, PatchCache
from proposal_cache.ranks import Ranks

SCRIPT = Path(__file__).parents[2] / "scripts/generate_sam_patches.py"


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


@pytest.mark.slow
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


def test_two_ranks_under_slurms_variables(folder: Path, tmp_path: Path, alone: PatchCache) -> None:
    slurm = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    command = [sys.executable, *arguments(folder, tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, env={**os.environ, **slurm, "SLURM_PROCID": rank}, stderr=subprocess.DEVNULL)
        for rank in ("0", "1")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert same_content(alone, PatchCache(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob(".meeting*"))


def test_what_the_launchers_say() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    assert Ranks.from_environment(torchrun) == Ranks(3, 8, 1, "env://")
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "1"}
    assert Ranks.from_environment(slurm) == Ranks(2, 4, 0, None, "9-1")
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert Ranks.from_environment(mpi).rank == 1
    assert Ranks.from_environment({}) == Ranks()
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}  # outside of srun: the only process there is
    assert Ranks.from_environment(batch_script) == Ranks()


def test_variables_that_make_no_sense() -> None:
    with pytest.raises(CacheError, match="WORLD_SIZE is 'many', not a number"):
        Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "many"})
    with pytest.raises(CacheError, match="RANK is 2, WORLD_SIZE is 2"):
        Ranks.from_environment({"RANK": "2", "WORLD_SIZE": "2"})
