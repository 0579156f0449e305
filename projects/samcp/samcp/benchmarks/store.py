"""Comparison of the patch cache with other storage formats."""

import argparse
import json
import multiprocessing
import pickle
import statistics
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zstandard
from pycocotools import mask as coco

from proposal_cache import CacheWriter, PatchCache, Patches
from proposal_cache.store.format import pack_masks
from samcp.benchmarks.report import Table

_CODEC_IMAGES = 200  # for the comparison of compression methods
_POOL = 2000  # different masks
_TARGETS = ("at most 0.60", "at most 0.50", "at most 0.50", "")  # of the best other format; none for writing


def tables(arguments: argparse.Namespace) -> Iterator[Table]:
    """Write synthetic patches in all formats; measure sizes and loads, compression methods, and parallel reads."""
    height, width, images, patches = arguments.height, arguments.width, arguments.images, arguments.patches
    reads, rounds = arguments.reads or images, arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.output) as folder:
        scratch = Path(folder)
        ours = Cache(scratch)
        formats = [ours, RecordFiles(scratch, pickle), RecordFiles(scratch, json), Groups(scratch)]
        pool = MaskPool(height, width, min(_POOL, images * patches), seed=0)
        writing = write_all(formats, pool, images, patches)
        note = f"{images} images of {height} x {width} with {patches} patches, of {pool.mean_length:.0f} bytes each."
        yield compare(formats, images, writing, load_in_turns(formats, images, reads, rounds), note)
        yield compare_codecs(pool, min(images, _CODEC_IMAGES), patches, rounds)
        yield read_in_parallel(ours.path, images, reads, arguments.workers)


class Format(ABC):
    """Storage format for the patches of many images, in a file or folder at `path`."""

    name: str
    path: Path

    @abstractmethod
    def write(self, key: str, patches: Patches) -> None:
        """Write the patches of an image."""

    def finish(self) -> None:  # noqa: B027  (optional)
        """Finish writing after the last image."""

    @abstractmethod
    def opened(self) -> Callable[[str], Any]:
        """Return a function that loads the patches of a key, in the format's own representation."""

    def files(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else [self.path]


class Cache(Format):
    """The cache of proposal_cache."""

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


class RecordFiles(Format):
    """File per image with the records that SAM's generator returns.

    `library` is json, as in SAM's ``scripts/amg.py``, or pickle.
    """

    def __init__(self, scratch: Path, library: Any) -> None:
        self.name = f"{library.__name__} per image"
        self.path = scratch / library.__name__
        self.path.mkdir()
        self._library = library
        self._mode = "" if library is json else "b"

    def write(self, key: str, patches: Patches) -> None:
        with open(f"{self.path}/{key}", f"w{self._mode}") as file:
            self._library.dump(sam_records(patches), file)

    def opened(self) -> Callable[[str], Any]:
        def load(key: str) -> Any:
            with open(f"{self.path}/{key}", f"r{self._mode}") as file:
                return self._library.load(file)

        return load


class Groups(Format):
    """HDF5 file with a group per image and a dataset per column."""

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


class MaskPool:
    """Random blobs with wavy outlines, from 0.05 % to 30 % of the image, small ones more frequent.

    Their outlines are as rough as those of smoothed colour regions of COCO images: 2.7 bytes of counts per column of
    pixels (a convex blob has 2), which zstd compresses to half.
    """

    def __init__(self, height: int, width: int, count: int, seed: int) -> None:
        self.height, self.width = height, width
        self._rng = np.random.default_rng(seed)
        self._pool = Patches.from_rles(height, width, [self._blob() for _ in range(count)])
        self.mean_length = statistics.mean(map(len, self._pool.rles))

    def sample(self, count: int) -> Patches:
        """Return random patches of the pool with random scores."""
        chosen = self._rng.choice(len(self._pool), count, replace=count > len(self._pool))
        return replace(
            self._pool.select(chosen),
            predicted_iou=self._rng.uniform(0.8, 1, count).astype(np.float32),
            stability_score=self._rng.uniform(0.9, 1, count).astype(np.float32),
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


def sam_records(patches: Patches) -> list[dict[str, Any]]:
    """Return patches as the records of segment-anything's generator with `output_mode="coco_rle"`."""
    records = []
    for i, (x0, y0, x1, y1) in enumerate(patches.boxes.astype(int).tolist()):
        point = [(x0 // 20 + 0.5) / 48 * patches.width, (y0 // 20 + 0.5) / 48 * patches.height]
        records.append(
            {
                "segmentation": {"size": [patches.height, patches.width], "counts": patches.rles[i].decode()},
                "area": patches.areas[i].item(),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": patches.predicted_iou[i].item(),
                "point_coords": [point],
                "stability_score": patches.stability_score[i].item(),
                "crop_box": [0, 0, patches.width, patches.height],
            }
        )
    return records


def write_all(formats: Sequence[Format], pool: MaskPool, images: int, count: int) -> list[float]:
    """Write the same images in all formats, in turns; return the seconds per format."""
    seconds = [0.0] * len(formats)
    for i in range(images):
        patches = pool.sample(count)
        for n, form in enumerate(formats):
            seconds[n] += timed(form.write, image_key(i), patches)
        if (i + 1) % 5000 == 0:
            print(f"  {i + 1} images written", flush=True)
    return [total + timed(form.finish) for total, form in zip(seconds, formats, strict=True)]


def load_in_turns(formats: Sequence[Format], images: int, reads: int, rounds: int) -> list[list[float]]:
    """Load the same random images in all formats, in turns; return the seconds of each load, per format."""
    rng = np.random.default_rng(1)
    loaders = [form.opened() for form in formats]
    seconds: list[list[float]] = [[] for _ in formats]
    for turn in range(rounds):
        keys = [image_key(i) for i in rng.integers(images, size=max(reads // rounds, 1))]
        for n in np.roll(np.arange(len(formats)), turn):
            fill_page_cache(formats[n].files())
            seconds[n] += [timed(loaders[n], key) for key in keys]
    return seconds


def fill_page_cache(files: Sequence[Path]) -> None:
    """Read files once, so that no load waits for the disk if they fit into memory."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def compare(
    formats: Sequence[Format], images: int, writing: list[float], loading: list[list[float]], note: str
) -> Table:
    """Compare all formats, and the first one with the best of the others."""
    columns = {
        "bytes per image": [sum(path.stat().st_size for path in form.files()) / images for form in formats],
        "load, ms (mean)": [statistics.mean(times) * 1e3 for times in loading],
        "load, ms (median)": [statistics.median(times) * 1e3 for times in loading],
        "write, ms": [seconds / images * 1e3 for seconds in writing],
    }
    rows = [
        [form.name, f"{size:.0f}", f"{mean:.3f}", f"{median:.3f}", f"{write:.2f}"]
        for form, size, mean, median, write in zip(formats, *columns.values(), strict=True)
    ]
    ratios = {name: min(values[1:]) / values[0] for name, values in columns.items()}
    rows.append(["proposal_cache / best of the others", *(f"{1 / ratio:.2f}" for ratio in ratios.values())])
    rows.append(["target", *_TARGETS])
    return Table("The store", ["", *columns], rows, ratios, note)


def compare_codecs(pool: MaskPool, images: int, count: int, rounds: int) -> Table:
    """Compare compression methods for the masks of an image; reading is timed in turns, the best counts."""
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
    return Table("Compression of the masks of an image", ["", "bytes", "unpack, ms", "pack, ms"], rows)


def read_in_parallel(path: Path, images: int, reads: int, workers: Sequence[int]) -> Table:
    """Measure random reads by several processes at once, each of which opens the cache."""
    rows = []
    for count in workers:
        with multiprocessing.get_context("spawn").Pool(count) as processes:
            jobs = [(path, images, max(reads // count, 1), seed) for seed in range(count)]
            results = processes.starmap(read_alone, jobs, chunksize=1)
        worst = [max(values) for values in zip(*results, strict=True)]
        rows.append([str(count), *(f"{value:.3f}" for value in worst[:3]), *(f"{value:.1f}" for value in worst[3:])])
    load = ["open, s", "load, ms (median)", "load, ms (99 %)"]
    memory = ["MB: opened", "MB: after 1/4 of reads", "MB: end"]
    note = "The slowest and largest worker of each."
    return Table("Processes that read at once", ["workers", *load, *memory], rows, note=note)


def read_alone(path: Path, images: int, reads: int, seed: int) -> tuple[float, ...]:
    """Return seconds to open, median and 99th percentile of a load in ms, and own memory in MB at three times."""
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
    """Return the megabytes that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line and "-" not in line.split(":")[0])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024
