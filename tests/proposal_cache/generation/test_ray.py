"""Generation on a Ray cluster, and its tasks without one."""

import pickle
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import CacheError, CacheWriter, Patches
from proposal_cache.generation.engines import GeneratorError, GeneratorFactory
from proposal_cache.generation.engines import ray as ray_engine
from proposal_cache.generation.engines.ray import RayEngine, ShardKeys, find_duplicates
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import SourceError, from_folder
from proposal_cache.generation.streams import Source, TarShard
from tests.proposal_cache.generation.fakes import Halves, Many, content, failing, on_device, write_images

pytest.importorskip("ray")
IMAGES = 60
UNGUARDED = 12  # images that are processed without waiting for the new node


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, "the event did not occur"
        time.sleep(0.01)


@dataclass
class Observed(Halves):
    """Generator that records the node of each call, and waits for the file `go` before all but the first images."""

    record: Path = Path()

    def __call__(self, image: np.ndarray) -> Patches:
        import ray

        (self.record / ray.get_runtime_context().get_node_id()).touch()
        if image[0, 0, 0] >= UNGUARDED:
            wait_until((self.record / "go").exists)
        return super().__call__(image)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head, and three nodes with a simulated GPU each."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=2, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def write_tars(folder: Path, *members: Sequence[int]) -> list[TarShard]:
    """Write a tar shard 0.tar, 1.tar, ... of the images with these numbers each."""
    shards = [TarShard(f"{folder.parent}/{i}.tar") for i in range(len(members))]
    for shard, numbers in zip(shards, members, strict=True):
        with tarfile.open(shard.url, "w") as tar:
            for number in numbers:
                tar.add(folder / f"{number:02}.png", f"{number:02}.png")
    return shards


def read(sources: Sequence[Source], done: set[str]) -> list[Any]:
    table = ray_engine._table(source=[pickle.dumps(source) for source in sources])
    tables = ray_engine._read(table, ray_engine._hashes(done))
    return [data for table in tables for data in table["image"].to_pylist()]


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of a worker is that in which Ray was started."""
    import ray

    sent: list[Any] = []

    def record(items: list[dict[str, bytes]], **_: object) -> None:
        sent.extend(pickle.loads(item["source"]).url for item in items)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray.data, "from_items", record)
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), count=1)
    sources: list[Source] = [*from_folder("images"), TarShard("a.tar"), TarShard("s3://bucket/b.tar")]
    with CacheWriter("cache", {"name": "halves"}, "set") as writer, suppress(KeyboardInterrupt):
        RayEngine()._dataset(sources, writer)
    assert sent == [f"{tmp_path}/images/00.png", f"{tmp_path}/a.tar", "s3://bucket/b.tar"]


def test_invalid_address(tmp_path: Path) -> None:
    images = from_folder(write_images(tmp_path / "images"))
    with pytest.raises(CacheError, match="--ray-address nowhere: "):
        generate(images, Halves(), tmp_path / "cache", "set", engine=RayEngine(address="nowhere"), progress=False)


def test_read_task_skips_finished_images_of_a_tar(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    *images, keys = map(pickle.loads, read([*from_folder(folder), *write_tars(folder, range(3))], {"00", "02"}))
    assert [image.key for image in images] == ["00", "01", "02", "01"]  # all files, and one member of the tar
    assert all(image.data for image in images)
    assert keys.suffixes == dict.fromkeys(("00", "01", "02"), ".png")


@pytest.mark.parametrize("done", [set(), {"00", "01", "02", "03"}])
def test_same_key_in_two_shards_is_reported(tmp_path: Path, done: set[str]) -> None:
    """By the tasks of the engine, one after the other."""
    actor, shards = ray_engine._Actor(GeneratorFactory(on_device), "cpu", loaders=1), {}
    outcomes = []
    for shard in write_tars(write_images(tmp_path / "images", 4), (0, 1, 1), (1, 2), (0, 3)):
        table = ray_engine._write(actor(ray_engine._table(image=read([shard], done))), tmp_path, 1)
        for outcome in pickle.loads(table["outcomes"].to_pylist()[0]):
            outcomes += find_duplicates(outcome, shards) if isinstance(outcome, ShardKeys) else [outcome]
    assert [key for key, error in outcomes if error is None] == ([] if done else ["00", "01", "01", "02", "00", "03"])
    errors = [error for _, error in outcomes if error]
    assert all(isinstance(error, SourceError) for error in errors)
    assert [re.search(r"\d\.tar/.*key '\d+'", str(error))[0] for error in errors] == [
        f"{name}: another image has the key {name[6:8]!r}" for name in ("0.tar/01.png", "1.tar/01.png", "2.tar/00.png")
    ]


def test_patches_that_cannot_be_stored_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proposal_cache.store.format.MAX_PATCHES", 4)
    results = [
        (f"{i:02}", Many()(image.read())) for i, image in enumerate(from_folder(write_images(tmp_path / "i", 7)))
    ]
    for part in (results, results[5:6]):
        table = ray_engine._write(ray_engine._table(result=list(map(pickle.dumps, part))), tmp_path, 1)
        [(key, error)] = [outcome for outcome in pickle.loads(table["outcomes"].to_pylist()[0]) if outcome.error]
        assert (key, type(error)) == ("05", GeneratorError)
        assert "the patches of '05' cannot be stored: 5 masks" in str(error)
    assert table["file"].to_pylist() == [b""]
    assert len(list((tmp_path / "staged").iterdir())) == 1


@pytest.mark.slow
def test_one_node_is_killed_and_another_joins(cluster: Any, tmp_path: Path) -> None:
    images = from_folder(write_images(tmp_path / "images", IMAGES))
    calls = tmp_path / "calls"
    calls.mkdir()
    broken = failing({7, 50})
    observed = Observed(broken.errors, record=calls)
    run = partial(generate, images, dataset="set", shard_size=4, progress=False)
    engine = RayEngine(actors=(1, 3), gpus=1, shard_size=4)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, generator=observed, output=tmp_path / "ray", engine=engine)
        workers = {node.node_id: node for node in cluster.worker_nodes}
        wait_until(lambda: result.done() or any((calls / name).exists() for name in workers))
        cluster.remove_node(next(workers[path.name] for path in calls.iterdir()), allow_graceful=False)
        added = cluster.add_node(num_cpus=2, num_gpus=1)
        wait_until(lambda: result.done() or (calls / added.node_id).exists())
        (calls / "go").touch()
        result.result()
    assert (calls / added.node_id).exists(), "the new node had no work"
    run(generator=broken, output=tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert len(content(tmp_path / "ray")["patches"]) == IMAGES - 2
    assert not (tmp_path / "ray/staged").exists()
