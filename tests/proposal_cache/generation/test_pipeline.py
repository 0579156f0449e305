"""Generation in this process and in worker processes: content, resume, failures."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from proposal_cache import CacheError, PatchCache, Patches
from proposal_cache.generation.engines import GeneratorFactory
from proposal_cache.generation.engines.local import LocalEngine
from proposal_cache.generation.pipeline import coverage, generate, summary
from proposal_cache.generation.sources import ImageFile, from_folder
from tests.proposal_cache.generation.fakes import (
    Boxes,
    CtrlC,
    Dies,
    Halves,
    Many,
    content,
    failing,
    fails_in_workers,
    on_device,
    write_images,
)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    return from_folder(write_images(tmp_path / "images"))


def run(images: list[ImageFile], path: Path, generator: Halves | None = None, **options: Any) -> Halves:
    generator = generator or Halves()
    generate(images, generator, path, "set", progress=False, **options)
    return generator


def test_each_image_gets_its_patches(images: list[ImageFile], tmp_path: Path) -> None:
    run(images, tmp_path / "cache", shard_size=3)
    cache = PatchCache(tmp_path / "cache")
    assert [cache[f"{i:02}"].areas.tolist() for i in range(10)] == [[8 * (i + 1)] for i in range(10)]
    assert len(cache.manifest.shards) == 4
    assert re.search(r": 10 images, 1\.0 patches and \d+ bytes per image, 34\.4 % of pixels", summary(cache))
    assert coverage(Patches.empty(4, 4)) == 0
    assert run(images, tmp_path / "cache").calls == 0


@pytest.mark.parametrize(
    "engine",
    [LocalEngine(workers=2), LocalEngine(loaders=5), LocalEngine(devices=("cuda:0", "cuda:1"))],
    ids=["processes", "threads", "devices"],
)
def test_content_does_not_depend_on_the_engine(images: list[ImageFile], tmp_path: Path, engine: LocalEngine) -> None:
    run(images, tmp_path / "one")
    factory = GeneratorFactory(on_device, threads=2)  # the devices are names only here
    generate(images, factory, tmp_path / "other", "set", engine=engine, shard_size=1, progress=False)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_interrupted_run_continues(images: list[ImageFile], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path / "cache", Halves({5: KeyboardInterrupt()}), shard_size=2)
    assert len(PatchCache(tmp_path / "cache")) == 5
    assert run(images, tmp_path / "cache").calls == 5
    run(images, tmp_path / "one")
    assert content(tmp_path / "cache") == content(tmp_path / "one")


def test_unreadable_image_is_recorded_and_tried_again(
    images: list[ImageFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = images[4].path.read_bytes()
    images[4].path.write_bytes(b"")
    run(images, tmp_path / "cache")
    cache = PatchCache(tmp_path / "cache")
    assert len(cache) == 9
    assert "the file is empty" in cache.manifest.failures["04"]
    assert "warning: skipped: " in capsys.readouterr().err
    assert "9 images, 1 failed" in summary(cache)
    images[4].path.write_bytes(good)
    assert run(images, tmp_path / "cache").calls == 1
    assert not PatchCache(tmp_path / "cache").manifest.failures


@pytest.mark.parametrize("workers", [0, 1])
def test_failure_of_the_generator_is_recorded(images: list[ImageFile], tmp_path: Path, workers: int) -> None:
    run(images, tmp_path / "cache", failing((2, 7)), engine=LocalEngine(workers=workers))
    cache = PatchCache(tmp_path / "cache")
    assert len(cache) == 8
    assert list(cache.manifest.failures) == ["02", "07"]
    assert cache.manifest.failures["02"] == (
        f"{images[2].path} failed in the generator: RuntimeError: height and width must be > 0"
    )


def test_patches_that_cannot_be_stored_are_a_failure(
    images: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proposal_cache.store.format.MAX_PATCHES", 4)
    for _ in range(2):
        run(images, tmp_path / "cache", Many(), shard_size=2)
        assert PatchCache(tmp_path / "cache").manifest.failures == {
            "05": "the patches of '05' cannot be stored: 5 masks of 25 bytes in one image are too many: "
            "at most 4 masks and 268435456 bytes are supported"
        }
    assert len(PatchCache(tmp_path / "cache")) == 9


def test_out_of_memory_is_recorded(images: list[ImageFile], tmp_path: Path) -> None:
    run(images, tmp_path / "cache", Halves({2: MemoryError(), 4: torch.OutOfMemoryError()}))
    failures = PatchCache(tmp_path / "cache").manifest.failures
    assert [re.search(r"(\w+): $", failures[key])[1] for key in ("02", "04")] == ["MemoryError", "OutOfMemoryError"]


def test_broken_generator_stops_the_run(images: list[ImageFile], tmp_path: Path) -> None:
    many = [ImageFile(f"{copy}-{image.key}", image.url) for copy in range(3) for image in images]
    run(many, tmp_path / "9 in a row", failing(range(1, 10)))
    broken = failing(range(10))
    with pytest.raises(CacheError, match=r"failed on 10 images in a row, the last one: .*09\.png .*RuntimeError"):
        run(many, tmp_path / "cache", broken)
    with pytest.raises(CacheError, match=r"10 images in a row"):
        run(many, tmp_path / "cache", broken)  # the next ones: earlier failures do not count
    run(many[:20], tmp_path / "cache", broken)
    assert len(PatchCache(tmp_path / "cache").manifest.failures) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_are_passed_to_the_generator(images: list[ImageFile], tmp_path: Path, workers: int) -> None:
    images[3] = replace(images[3], boxes=((1, 2, 3, 4), (0, 0, 9, 5)))
    run(images, tmp_path / "cache", Boxes(), engine=LocalEngine(workers=workers))
    cache = PatchCache(tmp_path / "cache")
    assert cache["03"].boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 5]]
    assert cache["04"].areas.tolist() == [8 * 5]
    with pytest.raises(CacheError, match="Halves does not accept boxes; use RefineGenerator"):
        run(images, tmp_path / "other")


def test_killed_worker_is_reported(images: list[ImageFile], tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="a worker process died"):
        run(images, tmp_path / "cache", Dies(), engine=LocalEngine(workers=1))


def test_reason_why_a_worker_cannot_start_is_reported(images: list[ImageFile], tmp_path: Path) -> None:
    factory = GeneratorFactory(fails_in_workers)
    with pytest.raises(CacheError, match="the generator cannot start on cpu: RuntimeError: no device"):
        generate(images, factory, tmp_path / "cache", "set", engine=LocalEngine(workers=1), progress=False)


def test_workers_ignore_ctrl_c_while_they_start(images: list[ImageFile], tmp_path: Path) -> None:
    factory = GeneratorFactory(partial(on_device, _ignored=CtrlC()))
    generate(images, factory, tmp_path / "cache", "set", engine=LocalEngine(workers=1), progress=False)
    assert len(PatchCache(tmp_path / "cache")) == len(images)


@pytest.mark.parametrize(
    ("send", "number", "work"),
    [
        (os.kill, signal.SIGKILL, "pool.map(time.sleep, [600] * 4)"),
        (os.kill, signal.SIGTERM, "pool.map(time.sleep, [600] * 4)"),
        (os.killpg, signal.SIGINT, "pool.map(time.sleep, [600] * 4)"),
        (os.kill, signal.SIGINT, "pool.map(bytes, [100 << 20] * 4)"),  # while a worker sends its result
    ],
    ids=["killed", "terminated", "Ctrl-C", "Ctrl-C while sending"],
)
def test_workers_exit_with_their_parent(send: Any, number: int, work: str) -> None:
    code = (
        "import time\nfrom proposal_cache.generation.engines.local import process_pool\nwith process_pool(2) as pool:\n"
        f" print(list(pool.map(abs, range(2))), flush=True)\n list({work})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        send(process.pid, number)
        errors = process.communicate(timeout=60)[1]  # until no worker holds its stderr any more
        assert "InvalidStateError" not in errors or "bytes" in work
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
