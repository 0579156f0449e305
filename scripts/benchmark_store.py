"""The patch cache beside what people keep patches in: a pickle, a json, or an HDF5 group per image.

Makes synthetic patches, writes them in all four ways, and prints bytes per image, load time, time to open and memory,
as ratios measured in one run, taking turns; and what ways to compress the masks give. The defaults take seconds; the
size of COCO is

    python scripts/benchmark_store.py --images 118287 --output SCRATCH

and takes some 17 GB there. As many images are read as there are, as in an epoch of training. The files of a format are
read once before each of its turns: where they fit into memory, what is compared is the work, not the disk.
"""

import argparse
import json
import multiprocessing
import pickle
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import zstandard
from pycocotools import mask as coco
from tabulate import tabulate

from proposal_cache import CacheWriter, PatchCache, Patches
from proposal_cache.store.format import pack_masks

_CODEC_IMAGES = 200  # on which ways to compress are compared

Records = list[dict[str, Any]]


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory(dir=args.output) as scratch:
        ours = Ours(Path(scratch))
        peers: list[Format] = [
            RecordFiles(Path(scratch), pickle),
            RecordFiles(Path(scratch), json),
            Groups(Path(scratch)),
        ]
        formats = [ours, *peers]
        print(f"{args.images} images of {args.height} x {args.width}, {args.patches} patches each", flush=True)
        pool = MaskPool(args.height, args.width, min(2000, args.images * args.patches), seed=0)
        seconds = write_all(formats, pool, args.images, args.patches)
        print(f"compressed counts of a patch: {pool.mean_length:.0f} bytes\n")
        print(compare_codecs(pool, min(args.images, _CODEC_IMAGES), args.patches, args.rounds), "\n")
        loads = load_in_turns(formats, args.images, args.reads, args.rounds)
        print(compare(formats, args.images, seconds, loads), "\n")
        print(serve(ours, args.images, args.reads, args.workers))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="images in the cache (COCO has 118287)")
    parser.add_argument("--patches", type=int, default=100, help="patches of an image")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--reads", type=int, help="images read at random from each format (default: as many as images)")
    parser.add_argument("--rounds", type=int, default=5, help="turns in which the reads are taken")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="numbers of processes that read at once")
    parser.add_argument("--output", type=Path, help="where to write, removed at the end; default: the temporary folder")
    args = parser.parse_args()
    args.reads = args.reads or args.images
    return args


class Format(Protocol):
    """A way to keep the patches of many images."""

    name: str
    path: Path
    """The file, or the folder of files, in which it keeps them."""

    def write(self, key: str, patches: Patches) -> None: ...

    def finish(self) -> None:
        """After the last image."""

    def opened(self) -> Callable[[str], Any]:
        """Return a function that loads the patches of a key, in the format's own representation."""

    def size(self) -> int:
        """Bytes of all files."""


class Ours:
    name = "proposal_cache"

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "cache"
        self._writer = CacheWriter(self.path, {"name": "synthetic"}, "synthetic")

    def write(self, key: str, patches: Patches) -> None:
        self._writer.add(key, patches)

    def finish(self) -> None:
        self._writer.close()

    def opened(self) -> Callable[[str], Any]:
        return PatchCache(self.path).__getitem__

    def size(self) -> int:
        return size_of_files(self.path)


class RecordFiles:
    """The list of records that SAM's generator returns, in a file for each image."""

    def __init__(self, scratch: Path, kind: Any) -> None:
        """`kind` is the module that writes and reads them, json (as SAM's `scripts/amg.py` does) or pickle."""
        self.name = f"{kind.__name__} per image"
        self.path = scratch / kind.__name__
        self.path.mkdir()
        self._kind = kind
        self._mode = "" if kind is json else "b"

    def write(self, key: str, patches: Patches) -> None:
        with open(f"{self.path}/{key}", f"w{self._mode}") as file:
            self._kind.dump(sam_records(patches), file)

    def finish(self) -> None: ...

    def opened(self) -> Callable[[str], Any]:
        def load(key: str) -> Records:
            with open(f"{self.path}/{key}", f"r{self._mode}") as file:
                return self._kind.load(file)

        return load

    def size(self) -> int:
        return size_of_files(self.path)


class Groups:
    """One HDF5 file, a group for an image, a dataset for each of its columns."""

    name = "HDF5 group per image"

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "groups.h5"
        self._file = h5py.File(self.path, "w", libver="latest")

    def write(self, key: str, patches: Patches) -> None:
        group = self._file.create_group(key)
        group.attrs["size"] = (patches.height, patches.width)
        group["counts"] = np.frombuffer(b"".join(patches.rles), np.uint8)
        group["length"] = np.array([len(counts) for counts in patches.rles], np.uint32)
        for name in ("boxes", "areas", "predicted_iou", "stability_score"):
            group[name] = getattr(patches, name)

    def finish(self) -> None:
        self._file.close()

    def opened(self) -> Callable[[str], Any]:
        file = h5py.File(self.path, "r")
        return lambda key: {name: dataset[()] for name, dataset in file[key].items()}

    def size(self) -> int:
        return self.path.stat().st_size


class MaskPool:
    """Wobbly blobs, from 0.05 % to 30 % of the image, small ones common.

    Their outlines are as rough as those of smoothed colour regions of COCO images: 2.7 bytes of counts for each column
    of pixels (a convex blob has 2), of which zstd takes half away.
    """

    def __init__(self, height: int, width: int, count: int, seed: int) -> None:
        self.height, self.width = height, width
        self._rng = np.random.default_rng(seed)
        pool = Patches.from_rles(height, width, [self._blob() for _ in range(count)])
        self.mean_length = statistics.mean(map(len, pool.rles))
        self._pool = pool

    def sample(self, count: int) -> Patches:
        """Some of the pool, with scores as a generator gives them."""
        chosen = self._pool.select(self._rng.choice(len(self._pool), count, replace=count > len(self._pool)))
        return Patches(
            self.height,
            self.width,
            chosen.rles,
            chosen.boxes,
            chosen.areas,
            self._rng.uniform(0.8, 1, count).astype(np.float32),
            self._rng.uniform(0.9, 1, count).astype(np.float32),
            chosen.source,
        )

    def _blob(self) -> bytes:
        rng = self._rng
        radius = np.sqrt(np.exp(rng.uniform(np.log(5e-4), np.log(0.3))) * self.height * self.width / np.pi)
        turn = np.linspace(-np.pi, np.pi, 2000)
        edge = np.full_like(turn, radius)
        for wave in range(2, 60):
            edge += rng.normal() * 0.35 * radius / wave**1.25 * np.sin(wave * turn + rng.uniform(0, 2 * np.pi))
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        dy, dx = y - rng.uniform(0, self.height), (x - rng.uniform(0, self.width)) * rng.uniform(0.5, 2)
        reach = np.hypot(dy, dx)
        near = reach < edge.max()
        mask = np.zeros((self.height, self.width), np.uint8, order="F")
        mask[near] = reach[near] < np.interp(np.arctan2(dy[near], dx[near]), turn, edge)
        return coco.encode(mask)["counts"]


def sam_records(patches: Patches) -> Records:
    """Return patches as segment-anything's generator does with `output_mode="coco_rle"`."""
    boxes = patches.boxes.astype(int).tolist()
    return [
        {
            "segmentation": {"size": [patches.height, patches.width], "counts": counts.decode()},
            "area": area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "predicted_iou": iou,
            "point_coords": [[(x0 // 20 + 0.5) / 48 * patches.width, (y0 // 20 + 0.5) / 48 * patches.height]],
            "stability_score": stability,
            "crop_box": [0, 0, patches.width, patches.height],
        }
        for counts, area, (x0, y0, x1, y1), iou, stability in zip(
            patches.rles,
            patches.areas.tolist(),
            boxes,
            patches.predicted_iou.tolist(),
            patches.stability_score.tolist(),
            strict=True,
        )
    ]


def write_all(formats: Sequence[Format], pool: MaskPool, images: int, count: int) -> list[float]:
    """Seconds that each format took to write the same images, in turns."""
    seconds = [0.0] * len(formats)
    for i in range(images):
        patches = pool.sample(count)
        for n, form in enumerate(formats):
            seconds[n] += timed(form.write, image_key(i), patches)
        if (i + 1) % 5000 == 0:
            print(f"  {i + 1} images written", flush=True)
    for n, form in enumerate(formats):
        seconds[n] += timed(form.finish)
    return seconds


def load_in_turns(formats: Sequence[Format], images: int, reads: int, rounds: int) -> list[list[float]]:
    """Seconds of each load: the formats read the same random images, one after the other, in every round.

    What a format's files have lost of their place in the system's cache to those of the others, they get back before.
    """
    rng = np.random.default_rng(1)
    loaders = [form.opened() for form in formats]
    seconds: list[list[float]] = [[] for _ in formats]
    for turn in range(rounds):
        keys = [image_key(i) for i in rng.integers(images, size=max(reads // rounds, 1))]
        for n in np.roll(np.arange(len(formats)), turn):
            warm(formats[n].path)
            seconds[n] += [timed(loaders[n], key) for key in keys]
    return seconds


def warm(path: Path) -> None:
    """Reads a file, or all files in a folder, so that no load waits for a disk, as long as they fit into memory."""
    for one in path.iterdir() if path.is_dir() else [path]:
        with open(one, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def compare(formats: Sequence[Format], images: int, writing: list[float], loading: list[list[float]]) -> str:
    """The table of all formats, and what share of the best of the others the first one takes."""
    sizes = [form.size() / images for form in formats]
    means = [statistics.mean(times) * 1e3 for times in loading]
    medians = [statistics.median(times) * 1e3 for times in loading]
    writes = [seconds / images * 1e3 for seconds in writing]
    rows: list[list[Any]] = [
        [form.name, f"{size:.0f}", f"{mean:.3f}", f"{median:.3f}", f"{write:.2f}"]
        for form, size, mean, median, write in zip(formats, sizes, means, medians, writes, strict=True)
    ]
    shares = [f"{column[0] / min(column[1:]):.2f}" for column in (sizes, means, medians, writes)]
    rows.append(["proposal_cache / best of the others", *shares])
    headers = ["", "bytes an image", "load, ms (mean)", "load, ms (median)", "write, ms"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 4))


def compare_codecs(pool: MaskPool, images: int, count: int, rounds: int) -> str:
    """The table of ways to compress the masks of an image; each in turns, the best round counts."""
    texts = [b"".join(pool.sample(count).rles) for _ in range(images)]
    unzstd = zstandard.ZstdDecompressor().decompress
    codecs: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], Any]]] = {
        "none": (bytes, bytearray),
        "zlib 6, as HDF5's gzip": (zlib.compress, zlib.decompress),
        **{f"zstd {level}": (zstandard.ZstdCompressor(level).compress, unzstd) for level in (-5, 1, 3, 6, 19)},
        "proposal_cache: zstd 6, repetitions from 6 characters on": (lambda text: pack_masks([text]), unzstd),
    }
    packed: dict[str, list[bytes]] = {}
    writing, reading = ({name: float("inf") for name in codecs} for _ in range(2))
    for name, (pack, _) in codecs.items():
        start = time.perf_counter()
        packed[name] = [pack(text) for text in texts]
        writing[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, (_, unpack) in codecs.items():
            reading[name] = min(reading[name], sum(timed(unpack, frame) for frame in packed[name]))
    rows = [
        [name, f"{statistics.mean(map(len, packed[name])):.0f}"]
        + [f"{seconds[name] / images * 1e3:.3f}" for seconds in (reading, writing)]
        for name in codecs
    ]
    headers = ["masks of an image, as", "bytes", "unpack, ms", "pack, ms"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 3))


def serve(ours: Ours, images: int, reads: int, workers: Sequence[int]) -> str:
    """The table of reading from several processes at once: each opens the cache and reads at random."""
    rows = []
    for count in workers:
        with multiprocessing.get_context("spawn").Pool(count) as processes:
            jobs = [(ours.path, images, max(reads // count, 1), seed) for seed in range(count)]
            results = processes.starmap(serve_alone, jobs, chunksize=1)
        opened, median, late, before, early, end = (max(values) for values in zip(*results, strict=True))
        rows.append(
            [count, f"{opened:.3f}", f"{median:.3f}", f"{late:.3f}", f"{before:.1f}", f"{early:.1f}", f"{end:.1f}"]
        )
    headers = [
        "workers",
        "open, s",
        "load, ms (median)",
        "load, ms (99 %)",
        "MB: opened",
        "MB: after 1/4 of reads",
        "MB: end",
    ]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=["right"] * len(headers))
    return f"The slowest and largest worker of each:\n{table}"


def serve_alone(path: Path, images: int, reads: int, seed: int) -> tuple[float, float, float, float, float, float]:
    """Seconds to open, median and 99th percentile of a load in ms, and this process's own memory in MB three times."""
    keys = [image_key(i) for i in np.random.default_rng(seed).integers(images, size=reads)]
    seconds = np.full(reads, np.nan)
    start = time.perf_counter()
    cache = PatchCache(path)
    opened = time.perf_counter() - start
    before = own_memory()
    for i, key in enumerate(keys):
        seconds[i] = timed(cache.__getitem__, key)
        if i == reads // 4:
            early = own_memory()
    median, late = np.percentile(seconds, [50, 99]) * 1e3
    return opened, float(median), float(late), before, early, own_memory()


def image_key(i: int) -> str:
    return f"{i:012d}"


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def own_memory() -> float:
    """Megabytes that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line and "-" not in line.split(":")[0])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


def size_of_files(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
