"""Writing and reading a cache."""

import errno
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from proposal_cache import CacheError, CacheWriter, PatchCache, Patches, finalize, verify
from proposal_cache.errors import MismatchError, MissingKeyError
from proposal_cache.store import Manifest, ShardInfo, columns, reader, writer
from proposal_cache.store.columns import Descriptor
from proposal_cache.store.index import KeyIndex, write_index
from tests.proposal_cache.tool import write_cache
from tests.proposal_cache.toy_cache import GENERATOR, check, make_key, make_patches, same, write


def test_round_trip(cache_path: Path) -> None:
    cache = check(cache_path, 25)
    assert len(cache) == 25
    assert make_key(3) in cache
    assert make_key(25) not in cache
    assert cache.missing([make_key(40), make_key(2), "\udcff"]) == [make_key(40), "\udcff"]
    with pytest.raises(MissingKeyError, match=r"cache has no patches of 'nowhere' among its 25 images of toys"):
        cache["nowhere"]
    assert cache.get("nowhere") is None


def test_manifest(cache_path: Path) -> None:
    manifest = PatchCache(cache_path).manifest
    assert manifest.dataset == "toys"
    assert manifest.generators == (GENERATOR,)
    assert [shard.images for shard in manifest.shards] == [10, 10, 5]
    assert (manifest.images, manifest.patches) == (25, sum(i % 10 for i in range(25)))
    assert manifest.bytes == sum(file.stat().st_size for file in cache_path.glob("shard-*"))


def test_images_without_patches_and_huge_images(tmp_path: Path) -> None:
    wide = Patches.from_masks(np.ones((1, 2, 70_000), bool))  # beyond 16 bits
    assert wide.boxes.tolist() == [[0, 0, 70_000, 2]]
    for images in ({"empty": Patches.empty(3, 4)}, {"empty": Patches.empty(3, 4), "wide": wide}):
        path = write_cache(tmp_path / f"cache {len(images)}", GENERATOR, images)
        assert all(same(PatchCache(path)[key], patches) for key, patches in images.items())
        assert all(verdict.problem is None for verdict in verify(path))


def test_empty_cache(tmp_path: Path) -> None:
    assert "a" not in check(write(tmp_path / "none", range(0)), 0)


def test_read_only_directory(cache_path: Path) -> None:
    for entry in [*cache_path.iterdir(), cache_path]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        assert len(PatchCache(cache_path)[make_key(9)]) == 9
    finally:
        cache_path.chmod(0o755)


@pytest.mark.parametrize("method", ["fork", "spawn"])  # spawn pickles the cache
def test_data_loader_workers(cache_path: Path, method: str) -> None:
    cache = PatchCache(cache_path)
    assert same(cache[make_key(1)], make_patches(1))  # a shard is open before the workers start
    workers = 2 if method == "fork" else 1
    keys = [make_key(i) for i in range(25)]
    loader = DataLoader(cache, None, sampler=keys, num_workers=workers, multiprocessing_context=method)
    for i, patches in zip(range(25), loader, strict=True):
        assert same(patches, make_patches(i))


def test_threads_share_a_cache(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_DESCRIPTORS", 1)
    cache = PatchCache(cache_path)

    def read(seed: int) -> bool:
        numbers = np.random.default_rng(seed).integers(25, size=300)
        return all(same(cache[make_key(i)], make_patches(i)) for i in numbers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


def test_each_shard_is_opened_once(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PatchCache(cache_path)
    opened: list[Path] = []
    monkeypatch.setattr(columns, "Descriptor", lambda path: opened.append(path) or Descriptor(path))
    for i in [*range(25), *range(25)]:
        cache[make_key(i)]
    assert len(opened) == len(set(opened)) == len(cache.manifest.shards) == 3


def test_open_files_are_limited_and_closed(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith(str(cache_path)) for link in links if os.path.lexists(link))

    monkeypatch.setattr(reader, "_MAX_DESCRIPTORS", 2)
    assert opened() == 0
    cache = PatchCache(cache_path)
    for i in range(25):
        cache[make_key(i)]
    assert opened() == 2
    del cache
    gc.collect()
    assert opened() == 0


def test_opening_reads_no_shard(tmp_path: Path) -> None:
    """The shards do not exist."""
    keys = [f"{i:012d}" for i in range(10_000)]
    parts = [[key.encode() for key in keys[start : start + 1000]] for start in range(0, len(keys), 1000)]
    shards = [ShardInfo(f"shard-r000-{i:05d}.h5", len(part), 0, 0, "") for i, part in enumerate(parts)]
    Manifest("toys", (GENERATOR,), tuple(shards), write_index(tmp_path, parts)).save(tmp_path)
    cache = PatchCache(tmp_path)
    assert cache.missing(keys[::1000]) == []
    assert len(cache) == 10_000


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 300])
def test_key_index_finds_the_same_as_a_dict(tmp_path: Path, count: int) -> None:
    keys = [f"{'sub/' * (i % 3)}{i:03d}".encode() for i in range(2 * count)]
    present, absent = keys[::2], [*keys[1::2], b"", b"\xff"]
    halves = [present[: count // 3], present[count // 3 :]]
    index = KeyIndex.open(tmp_path, write_index(tmp_path, halves))
    positions = {key: (shard, row) for shard, part in enumerate(halves) for row, key in enumerate(part)}
    assert {key: index.find(key) for key in present} == positions
    assert [index.find(key) for key in absent] == [None] * len(absent)
    assert list(index) == sorted(present)


def test_resume_adds_missing_images(cache_path: Path) -> None:
    cache = check(write(cache_path, range(40)), 40)
    assert [shard.images for shard in cache.manifest.shards] == [10, 10, 5, 10, 5]
    assert len(list(cache_path.glob("index-*"))) == 1


def test_shards_are_written_after_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    with CacheWriter(tmp_path / "cache", GENERATOR, "toys") as cache:
        for i in range(4):
            cache.add(make_key(i), make_patches(i))
            now[0] += 350
        assert len(list((tmp_path / "cache").glob("shard-*.h5"))) == 1


def test_failures_are_listed_until_the_image_is_added(cache_path: Path) -> None:
    failures = [("bad/one", "not an image"), ("bad/two", "first reason"), ("bad/two", "second reason")]
    write_cache(cache_path, GENERATOR, {}, failures=failures, dataset="toys")
    found = PatchCache(cache_path)
    assert found.manifest.failures == {"bad/one": "not an image", "bad/two": "second reason"}
    with pytest.raises(MissingKeyError, match="not an image"):
        found["bad/one"]
    with CacheWriter(cache_path, GENERATOR, "toys") as cache:
        assert "bad/one" not in cache.done
        cache.add("bad/one", make_patches(1))
    assert PatchCache(cache_path).manifest.failures == {"bad/two": "second reason"}


@pytest.mark.parametrize(
    ("generator", "dataset", "difference"),
    [
        ({**GENERATOR, "threshold": 0.7}, "toys", r"its generator threshold is 0.8, not 0.7"),
        ({**GENERATOR, "more": 1}, "toys", r"its generator more is None, not 1"),
        ({**GENERATOR, "weights": {"sha256": "cd"}}, "toys", r"its generator weights.sha256 is 'ab', not 'cd'"),
        (GENERATOR, "games", r"its dataset is 'toys', not 'games'"),
        ([GENERATOR, {"name": "second"}], "toys", r"its generators are \['test'\], not \['test', 'second'\]"),
    ],
)
def test_mismatch_names_the_difference(cache_path: Path, generator: Any, dataset: str, difference: str) -> None:
    with pytest.raises(MismatchError, match=difference):
        CacheWriter(cache_path, generator, dataset)
    write(cache_path)  # the rejected writer has released the lock


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_generator_description_must_be_json(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CacheError, match="a generator must be described by JSON values"):
        CacheWriter(tmp_path / "cache", {"name": "test", "threshold": value}, "toys")
    assert not list(tmp_path.glob("cache/manifest*"))


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", "./a", "a\nb", "a\\b", "\udcff"]
)
def test_unsafe_keys_are_rejected(cache_path: Path, key: str) -> None:
    with CacheWriter(cache_path, GENERATOR, "toys") as cache:
        with pytest.raises(CacheError, match="cannot be a key"):
            cache.add(key, make_patches(1))
        with pytest.raises(CacheError, match="cannot be a key"):
            cache.add_failure(key, "reason")


def test_add_rejects_invalid_patches(cache_path: Path) -> None:
    good = make_patches(3)
    wrong_boxes = replace(good, boxes=good.boxes + 1)
    wrong_source = replace(good, source=good.source + 1)
    with CacheWriter(cache_path, GENERATOR, "toys") as cache:
        with pytest.raises(CacheError, match="already"):
            cache.add(make_key(3), good)
        with pytest.raises(CacheError, match="has source 1, but the cache has 1 generators, counted from 0"):
            cache.add("new", wrong_source)
        with pytest.raises(CacheError, match="do not match their masks"):
            cache.add("new", wrong_boxes)
    assert "new" not in PatchCache(cache_path)


def test_missing_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        PatchCache(tmp_path / "nowhere")
    with pytest.raises(CacheError, match=r"has no manifest.json"):
        PatchCache(tmp_path)


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    check(write(tmp_path / "cache"))


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_respect_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = write(tmp_path / "cache")
    finally:
        os.umask(before)
    files = [*path.glob("*.h5"), path / "manifest.json"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}


@pytest.mark.parametrize(
    "work",
    [finalize, lambda path: Manifest("toys", (GENERATOR,)).save(path, replace=False)],
    ids=["finalize", "create"],
)
def test_existing_manifest_does_not_change(cache_path: Path, work: Callable[[Path], object]) -> None:
    before = (cache_path / "manifest.json").read_bytes()
    work(cache_path)
    assert (cache_path / "manifest.json").read_bytes() == before
