"""Generation on a Ray cluster of three simulated nodes, one of which is killed while another joins."""

import pickle
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proposal_cache import Patches
from proposal_cache.generation.engines.ray import RayEngine, _hashes, _read, _table
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import from_folder
from proposal_cache.generation.streams import TarShard
from tests.proposal_cache.generation.fake_generators import Fails, content, write_images

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")
IMAGES = 60
UNGUARDED = 12  # images that are processed without waiting for the new node


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, "the event did not occur"
        time.sleep(0.01)


@dataclass
class Observed(Fails):
    """Generator that records the node of each call, and waits for the file `go` before all but the first images."""

    record: Path = Path()

    def __call__(self, image: np.ndarray) -> Patches:
        (self.record / ray.get_runtime_context().get_node_id()).touch()
        if image[0, 0, 0] >= UNGUARDED:
            wait_until((self.record / "go").exists)
        return super().__call__(image)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head, and three nodes with a simulated GPU each."""
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


def test_read_task_skips_finished_images_of_a_tar(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(folder, "")
    sources = _table(source=[pickle.dumps(source) for source in (*from_folder(folder), TarShard(f"{tmp_path}/0.tar"))])
    tables = list(_read(sources, _hashes({"00", "02"})))
    images = [pickle.loads(data) for table in tables for data in table["image"].to_pylist()]
    assert [image.key for image in images] == ["00", "01", "02", "01"]  # all files, and one member of the tar
    assert all(image.data for image in images)


def test_one_node_is_killed_and_another_joins(cluster: Any, tmp_path: Path) -> None:
    images = from_folder(write_images(tmp_path / "images", IMAGES))
    calls = tmp_path / "calls"
    calls.mkdir()
    broken = frozenset({7, 50})
    run = partial(generate, images, dataset="set", shard_size=4, progress=False)
    engine = RayEngine(actors=(1, 3), gpus=1, shard_size=4)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, generator=Observed(on=broken, record=calls), output=tmp_path / "ray", engine=engine)
        workers = {node.node_id: node for node in cluster.worker_nodes}
        wait_until(lambda: result.done() or any((calls / name).exists() for name in workers))
        cluster.remove_node(next(workers[path.name] for path in calls.iterdir()), allow_graceful=False)
        added = cluster.add_node(num_cpus=2, num_gpus=1)
        wait_until(lambda: result.done() or (calls / added.node_id).exists())
        (calls / "go").touch()
        result.result()
    assert (calls / added.node_id).exists(), "the new node had no work"
    run(generator=Fails(on=broken), output=tmp_path / "local")
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert len(content(tmp_path / "ray")["patches"]) == IMAGES - 2
    assert not (tmp_path / "ray/staged").exists()
