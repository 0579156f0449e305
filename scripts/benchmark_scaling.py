#!/usr/bin/env python
"""Measure how generation scales with workers, and the memory and file sizes per million images.

    python scripts/benchmark_scaling.py workers --engine local ray --workers 1 2 3
    python scripts/benchmark_scaling.py index --images 1000000

`workers` runs a generator that sleeps instead of using a GPU, so that one machine can simulate several: with
`--engine ray`, each worker is a simulated node with one GPU. `index` writes the manifest and the key index of a cache
without shards, and measures each step in a separate process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from proposal_cache import Patches
from proposal_cache.generation.engines import Engine
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.engines.ray import RayEngine, ShardKeys, find_duplicates
from proposal_cache.generation.pipeline import generate
from proposal_cache.generation.sources import ImageFile, from_folder
from proposal_cache.store import Manifest, ShardInfo
from proposal_cache.store.format import shard_name
from proposal_cache.store.index import KeyIndex, write_index

_SHARD_SIZE = 1000
_TAR_SIZE = 11_000  # images per tar file of SA-1B
_STEPS: dict[str, Callable[[int, Path], object]] = {
    "start Python and import": lambda images, cache: None,
    "list of images (driver)": lambda images, cache: [ImageFile(_key(i), f"{_key(i)}.jpg") for i in range(images)],
    "set of finished keys (driver)": lambda images, cache: {_key(i) for i in range(images)},
    "tar file of each key (driver, Ray)": lambda images, cache: _tar_files(images),
    "open manifest and index (reader)": lambda images, cache: _open(cache),
}


@dataclass(frozen=True)
class SleepingGenerator:
    """Generator that sleeps, returns 100 patches, and writes the time of each call to a file in a folder."""

    seconds: float
    record: Path

    def describe(self) -> dict[str, Any]:
        return {"name": "sleeps", "seconds": self.seconds}

    def __call__(self, image: NDArray[np.uint8]) -> Patches:
        with tempfile.NamedTemporaryFile("w", dir=self.record, delete=False) as file:
            file.write(f"{time.time()}")
        time.sleep(self.seconds)
        masks = np.zeros((100, *image.shape[:2]), bool)
        for i, mask in enumerate(masks):
            mask[4 * (i % 10) : 4 * (i % 10) + 40, 4 * (i // 10) : 4 * (i // 10) + 40] = True
        return Patches.from_masks(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scaling = commands.add_parser("workers", help="images per second by number of workers")
    scaling.add_argument("--engine", nargs="+", choices=("local", "ray"), default=["local", "ray"])
    scaling.add_argument("--workers", nargs="+", type=int, default=[1, 2, 3])
    scaling.add_argument("--images", type=int, default=96)
    scaling.add_argument(
        "--seconds", type=float, default=1.61, help="seconds that the generator sleeps per image (default %(default)s)"
    )
    index = commands.add_parser("index", help="memory and file sizes of a large cache")
    index.add_argument("--images", type=int, default=1_000_000)
    index.add_argument("--step", choices=_STEPS, help=argparse.SUPPRESS)
    index.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command == "workers":
        _measure_workers(arguments)
    elif arguments.step:
        _run_step(arguments.step, arguments.images, arguments.cache)
    else:
        _measure_index(arguments.images)


def _measure_workers(arguments: argparse.Namespace) -> None:
    print("engine  workers  images/s  share of the ideal rate, workers / seconds per image")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(arguments.images):
            Image.new("RGB", (80, 80), (i % 256, 0, 0)).save(folder / f"{i:05}.png")
        for engine in arguments.engine:
            for workers in arguments.workers:
                rate = _measure(engine, workers, from_folder(folder), arguments.seconds)
                print(f"{engine:<6}  {workers:>7}  {rate:>8.3f}  {rate * arguments.seconds / workers:.3f}", flush=True)


def _measure(name: str, workers: int, images: list[ImageFile], seconds: float) -> float:
    """Return images per second, without the startup of the engine."""
    if name == "local":
        return _rate(LocalEngine(workers=workers), images, seconds)
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=2, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        return _rate(RayEngine(actors=(workers, workers), gpus=1, shard_size=8), images, seconds)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _rate(engine: Engine, images: list[ImageFile], seconds: float) -> float:
    """Return images per second from the first call of the generator to the end of the last one."""
    with tempfile.TemporaryDirectory() as output, tempfile.TemporaryDirectory() as record:
        generate(images, SleepingGenerator(seconds, Path(record)), output, "scaling", engine=engine, progress=False)
        times = [float(path.read_text()) for path in Path(record).iterdir()]
    return len(times) / (max(times) + seconds - min(times))


def _measure_index(images: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        shards = [
            ShardInfo(shard_name(0, number), _SHARD_SIZE, 100 * _SHARD_SIZE, 15_787 * _SHARD_SIZE, f"{number:064x}")
            for number in range(-(-images // _SHARD_SIZE))
        ]
        keys = [_key(i).encode() for i in range(images)]
        started = time.process_time()
        index = write_index(cache, [keys[i : i + _SHARD_SIZE] for i in range(0, images, _SHARD_SIZE)])
        print(f"write the index: {time.process_time() - started:.1f} s of CPU")
        Manifest("synthetic", ({"name": "sam"},), tuple(shards), index).save(cache)
        for file in sorted(cache.iterdir()):
            print(f"{file.name:<30} {file.stat().st_size / images:8.2f} MB per million images")
        for step in _STEPS:
            command = [sys.executable, __file__, "index", "--images", str(images), "--step", step, "--cache", name]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            print(f"{step:<35} {found['megabytes']:8.0f} MB peak, {found['seconds']:.1f} s of CPU")


def _run_step(step: str, images: int, cache: Path) -> None:
    kept = _STEPS[step](images, cache)
    seconds = time.process_time()
    del kept
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024  # getrusage would include the parent process
    print(json.dumps({"megabytes": peak, "seconds": seconds}))


def _open(cache: Path) -> KeyIndex:
    index = Manifest.load(cache).index
    assert index is not None
    return KeyIndex.open(cache, index)


def _tar_files(images: int) -> dict[str, str]:
    """Return the dict in which the Ray engine finds keys that two tar files have."""
    found: dict[str, str] = {}
    for first in range(0, images, _TAR_SIZE):
        suffixes = {_key(i): ".jpg" for i in range(first, min(first + _TAR_SIZE, images))}
        assert not list(find_duplicates(ShardKeys(f"sa_{first // _TAR_SIZE:06}.tar", suffixes), found))
    return found


def _key(i: int) -> str:
    return f"sa_{i // _TAR_SIZE:06}/sa_{i}"


if __name__ == "__main__":
    main()
