"""The cache: what goes in comes out, in any process; what does not belong is refused by name."""

import contextlib
import gc
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zstandard
from torch.utils.data import DataLoader, Dataset

from proposal_cache import CacheError, CacheWriter, PatchCache, Patches, join, verify
from proposal_cache.errors import FormatError, MismatchError, MissingKeyError, StorageError
from proposal_cache.store import Manifest, ShardInfo, reader, writer
from proposal_cache.store.arrays import pack
from proposal_cache.store.format import IMAGE, WIDE_PATCH, pack_masks
from proposal_cache.store.index import write_index

GENERATOR = {"name": "test", "threshold": 0.8, "weights": {"sha256": "ab"}}


def make_patches(seed: int) -> Patches:
    """Up to nine rectangles in an image of a size of its own."""
    rng = np.random.default_rng(seed)
    count = seed % 10
    height, width = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(height), rng.integers(width)
        mask[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    scores = rng.random(count) if seed % 2 else None
    return Patches.from_masks(masks, predicted_iou=rng.random(count), stability_score=scores, source=seed % 3)


def make_key(i: int) -> str:
    return f"folder {i % 3}/im\u00e4ge.{i:04d}"


def same(a: Patches, b: Patches) -> bool:
    columns = ("boxes", "areas", "predicted_iou", "stability_score", "source")
    return (
        (a.height, a.width, a.rles) == (b.height, b.width, b.rles)
        and all(np.array_equal(getattr(a, c), getattr(b, c), equal_nan=c != "source") for c in columns)
        and all(getattr(a, c).dtype == getattr(b, c).dtype for c in columns)
    )


def write(path: Path, numbers: range = range(25), shard_size: int = 10) -> Path:
    with CacheWriter(path, GENERATOR, "toys", shard_size) as cache:
        for i in numbers:
            if make_key(i) not in cache.done:
                cache.add(make_key(i), make_patches(i))
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original") / "cache")


@pytest.fixture
def path(tmp_path: Path, original: Path) -> Path:
    """A cache of 25 images in 3 shards, to do with as one likes."""
    return shutil.copytree(original, tmp_path / "cache")


# What goes in comes out


def test_content_comes_back(path: Path) -> None:
    cache = PatchCache(path)
    assert len(cache) == 25
    assert list(cache.keys()) == sorted(make_key(i) for i in range(25))
    for i in range(25):
        assert same(cache[make_key(i)], make_patches(i))
    assert make_key(3) in cache
    assert make_key(25) not in cache
    assert cache.missing([make_key(40), make_key(2), "\udcff"]) == [make_key(40), "\udcff"]


def test_manifest_tells_what_the_cache_holds(path: Path) -> None:
    manifest = PatchCache(path).manifest
    assert manifest.dataset == "toys"
    assert manifest.generators == (GENERATOR,)
    assert [shard.images for shard in manifest.shards] == [10, 10, 5]
    assert (manifest.images, manifest.patches) == (25, sum(i % 10 for i in range(25)))
    assert manifest.bytes == sum(file.stat().st_size for file in path.glob("shard-*"))


def test_images_without_patches_and_huge_images(tmp_path: Path) -> None:
    wide = Patches.from_masks(np.ones((1, 2, 70_000), bool))  # beyond 16 bits
    assert wide.boxes.tolist() == [[0, 0, 70_000, 2]]
    for name, contents in {"empty": [Patches.empty(3, 4)], "both": [Patches.empty(3, 4), wide]}.items():
        with CacheWriter(tmp_path / name, GENERATOR, "toys") as cache:
            for i, patches in enumerate(contents):
                cache.add(str(i), patches)
        found = PatchCache(tmp_path / name)
        assert all(same(found[str(i)], patches) for i, patches in enumerate(contents))
        assert all(verdict.problem is None for verdict in verify(tmp_path / name))


def test_cache_of_nothing(tmp_path: Path) -> None:
    cache = PatchCache(write(tmp_path / "none", range(0)))
    assert len(cache) == 0
    assert list(cache) == []
    assert "a" not in cache


def test_reading_needs_no_right_to_write(path: Path) -> None:
    for entry in [*path.iterdir(), path]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    try:
        assert len(PatchCache(path)[make_key(9)]) == 9
    finally:
        path.chmod(0o755)


# Any process, any thread


class CacheDataset(Dataset[int]):
    """Compares what a worker reads with what it should be."""

    def __init__(self, cache: PatchCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, i: int) -> int:
        return i if same(self.cache[make_key(i)], make_patches(i)) else -1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(path: Path, method: str) -> None:
    cache = PatchCache(path)
    assert same(cache[make_key(1)], make_patches(1))  # a shard is open before the workers start
    loader = DataLoader(
        CacheDataset(cache), batch_size=2, num_workers=2 if method == "fork" else 1, multiprocessing_context=method
    )
    assert torch.cat(list(loader)).tolist() == list(range(25))


def test_pickled_cache_opens_anew(path: Path) -> None:
    cache = PatchCache(path)
    first = cache[make_key(7)]
    copy = pickle.loads(pickle.dumps(cache))
    assert same(copy[make_key(7)], first)


def test_threads_share_a_cache_with_few_descriptors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_MAX_DESCRIPTORS", 1)
    cache = PatchCache(path)
    wrong: list[object] = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(25, size=300):
            try:
                if not same(cache[make_key(i)], make_patches(i)):
                    wrong.append(i)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_descriptors_are_few_and_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are those of this cache alone: other tests' may be closed at any moment."""

    def opened() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith(str(path)) for link in links if os.path.lexists(link))

    monkeypatch.setattr(reader, "_MAX_DESCRIPTORS", 2)
    assert opened() == 0
    cache = PatchCache(path)
    for i in range(25):
        cache[make_key(i)]
    assert opened() == 2
    del cache
    gc.collect()
    assert opened() == 0


def test_opening_a_large_cache_touches_no_shard_and_is_fast(tmp_path: Path) -> None:
    """118,287 images, as COCO, in shards that are not even there: a second is far more than it takes."""
    keys = [f"{i:012d}" for i in range(118_287)]
    parts = [[key.encode() for key in keys[start : start + 1000]] for start in range(0, len(keys), 1000)]
    shards = [ShardInfo(f"shard-r000-{i:05d}.h5", len(part), 0, 0, "") for i, part in enumerate(parts)]
    Manifest("toys", (GENERATOR,)).with_content(shards, write_index(tmp_path, parts), {}).save(tmp_path)
    start = time.perf_counter()
    cache = PatchCache(tmp_path)
    assert cache.missing(keys[::1000]) == []
    assert len(cache) == 118_287
    assert time.perf_counter() - start < 1


# Continuing, and what is refused


def test_continuing_adds_what_is_missing(path: Path) -> None:
    write(path, range(40))
    cache = PatchCache(path)
    assert len(cache) == 40
    assert all(same(cache[make_key(i)], make_patches(i)) for i in range(40))
    assert [shard.images for shard in cache.manifest.shards] == [10, 10, 5, 10, 5]
    assert len(list(path.glob("index-*"))) == 1


def test_slow_images_do_not_wait_for_a_full_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    with CacheWriter(tmp_path / "cache", GENERATOR, "toys", shard_seconds=60) as cache:
        for i in range(4):
            cache.add(make_key(i), make_patches(i))
            now[0] += 35
        assert len(list((tmp_path / "cache").glob("shard-*.h5"))) == 1


def test_failures_are_told_until_they_are_mended(path: Path) -> None:
    with CacheWriter(path, GENERATOR, "toys") as cache:
        cache.add_failure("bad/one", "it is no image")
        cache.add_failure("bad/two", "first reason")
        cache.add_failure("bad/two", "second reason")
        assert "bad/one" not in cache.done
    found = PatchCache(path)
    assert found.manifest.failures == {"bad/one": "it is no image", "bad/two": "second reason"}
    with pytest.raises(MissingKeyError, match="it is no image"):
        found["bad/one"]
    with CacheWriter(path, GENERATOR, "toys") as cache:
        cache.add("bad/one", make_patches(1))
    assert PatchCache(path).manifest.failures == {"bad/two": "second reason"}


def test_missing_key(path: Path) -> None:
    cache = PatchCache(path)
    with pytest.raises(MissingKeyError, match=r"cache has no patches of 'nowhere' among its 25 images of toys"):
        cache["nowhere"]
    assert cache.get("nowhere") is None


@pytest.mark.parametrize(
    ("generator", "dataset", "difference"),
    [
        ({**GENERATOR, "threshold": 0.7}, "toys", r"its generator threshold is 0.8, not 0.7"),
        ({**GENERATOR, "more": 1}, "toys", r"its generator more is None, not 1"),
        ({**GENERATOR, "weights": {"sha256": "cd"}}, "toys", r"its generator weights.sha256 is 'ab', not 'cd'"),
        (GENERATOR, "games", r"it is of dataset 'toys', not 'games'"),
        ([GENERATOR, {"name": "second"}], "toys", r"by the generators \['test'\], not \['test', 'second'\]"),
    ],
)
def test_another_cache_is_refused_naming_the_difference(
    path: Path, generator: Any, dataset: str, difference: str
) -> None:
    with pytest.raises(MismatchError, match=difference):
        CacheWriter(path, generator, dataset)
    with pytest.raises(MismatchError, match=difference):
        PatchCache(path).require(generators=generator, dataset=dataset)
    PatchCache(path).require(generators=GENERATOR, dataset="toys")
    write(path)  # the refused writer has left no lock behind


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", "./a", "a\nb", "a\\b", "\udcff"]
)
def test_keys_that_could_lead_out_of_a_folder_are_refused(path: Path, key: str) -> None:
    with CacheWriter(path, GENERATOR, "toys") as cache:
        with pytest.raises(CacheError, match="cannot be a key"):
            cache.add(key, make_patches(1))
        with pytest.raises(CacheError, match="cannot be a key"):
            cache.add_failure(key, "reason")


def test_what_cannot_be_added(path: Path) -> None:
    good = make_patches(3)
    lying = Patches(
        good.height,
        good.width,
        good.rles,
        good.boxes + 1,
        good.areas,
        good.predicted_iou,
        good.stability_score,
        good.source,
    )
    with CacheWriter(path, GENERATOR, "toys") as cache:
        with pytest.raises(CacheError, match="already"):
            cache.add(make_key(3), good)
        with pytest.raises(CacheError, match="not those of their masks"):
            cache.add("new", lying)
    assert "new" not in PatchCache(path)


def test_no_cache_there(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        PatchCache(tmp_path / "nowhere")
    with pytest.raises(CacheError, match=r"holds no manifest.json"):
        PatchCache(tmp_path)


# Damaged and hostile files


Arrays = dict[str, np.ndarray]


def shard_arrays(path: Path, number: int = 0) -> Arrays:
    with h5py.File(sorted(path.glob("shard-*"))[number]) as file:
        return {name: dataset[()] for name, dataset in file.items()}


def rewrite_shard(path: Path, change: Callable[[Arrays], object]) -> None:
    """Makes the first shard say something else, with checksums that are right."""
    arrays = shard_arrays(path)
    change(arrays)
    manifest = json.loads((path / "manifest.json").read_text())
    info = manifest["shards"][0]
    data, info["checksum"] = pack("shard", arrays)
    (path / info["file"]).write_bytes(data)
    (path / "manifest.json").write_text(json.dumps(manifest))


def read_all(path: Path) -> None:
    cache = PatchCache(path)
    for key in cache:
        cache[key].decode()


def set_images(column: str, values: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays["images"][column] = values

    return change


def without_end(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def other_rows(arrays: Arrays) -> None:
    arrays["patches"] = np.zeros(45, [("box", "<f4", (4,)), ("rle_length", "<u4")])


def long_masks(arrays: Arrays) -> None:
    arrays["patches"] = arrays["patches"].astype(WIDE_PATCH)
    arrays["patches"]["rle_length"] = 1 << 31


LIES = {
    "huge images": set_images("height", 1 << 31),
    "no pixels": set_images("width", 0),
    "fewer images": without_end("images"),
    "patches beyond": set_images("patch_offset", [0] * 9 + [1 << 62]),
    "patches not from the start": set_images("patch_offset", range(1, 11)),
    "patches falling": set_images("patch_offset", [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
    "masks beyond": set_images("rle_offset", [0] * 9 + [(1 << 64) - 1]),
    "fewer patches": without_end("patches"),
    "fewer masks": without_end("rles"),
    "other rows": other_rows,
    "long masks": long_masks,
    "other images": lambda arrays: arrays.update(images=np.zeros((10, 2), IMAGE)),
    "no keys": lambda arrays: arrays.update(keys=np.zeros(0, np.uint8)),
    "keys that climb": lambda arrays: arrays.update(keys=np.frombuffer(b"../up\n" * 10, np.uint8)),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_shards_are_refused_by_name(path: Path, lie: str) -> None:
    rewrite_shard(path, LIES[lie])
    verdicts = {verdict.file: verdict.problem for verdict in verify(path)}
    if "keys" not in lie:  # reading takes them from the index
        with pytest.raises(FormatError, match="shard-r000-00000.h5"):
            read_all(path)
    if lie not in ("long masks", "fewer masks", "fewer patches"):  # which only reading the images can tell
        assert "shard-r000-00000.h5" in str(verdicts["shard-r000-00000.h5"])
    assert verdicts["shard-r000-00001.h5"] is None


def test_mask_bomb_is_refused_before_it_unfolds(path: Path) -> None:
    """A short frame that claims to unfold to 3 GB, as many as the lengths promise."""
    size, claim = 1 << 20, 3 << 30
    bomb = zstandard.ZstdCompressor().compress(bytes(size))
    bomb = bomb.replace(size.to_bytes(4, "little"), claim.to_bytes(4, "little"), 1)
    assert zstandard.get_frame_parameters(bomb).content_size == claim

    def plant(arrays: Arrays) -> None:
        long_masks(arrays)
        arrays["patches"]["rle_length"][0] = claim  # of the one patch of image 1
        arrays["images"]["rle_offset"] = [0, 0] + [len(bomb)] * 8
        arrays["rles"] = np.frombuffer(bomb, np.uint8)

    rewrite_shard(path, plant)
    with pytest.raises(FormatError, match=r"00000.h5 is damaged: in its image 1, its masks claim 3221225472"):
        PatchCache(path)[make_key(1)]


def test_every_truncation_is_noticed(path: Path) -> None:
    shard = path / "shard-r000-00001.h5"
    whole = shard.read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        shard.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"shard-r000-00001.h5"):
            read_all(path)
        assert [verdict.file for verdict in verify(path) if verdict.problem] == [shard.name]
        with pytest.raises(FormatError, match=r"shard-r000-00001.h5"):
            CacheWriter(path, GENERATOR, "toys")


def test_shard_cut_while_it_is_open(path: Path) -> None:
    cache = PatchCache(path)
    cache[make_key(9)]
    for shard in path.glob("shard-*"):
        os.truncate(shard, 3000)
    with pytest.raises(FormatError, match=r"shard-r000-00000.h5 is truncated"):
        list(map(cache.get, map(make_key, range(10))))


def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    """Every byte of a shard that means something is under a checksum: HDF5's own, or an array's."""
    path = write(tmp_path / "cache", range(5))
    (shard,) = path.glob("shard-*")
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # the rest is padding, mostly
    chosen = rng.choice(used, 80, replace=False)
    noticed = 0
    for at in chosen:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        shard.write_bytes(damaged)
        noticed += any(verdict.problem and shard.name in verdict.problem for verdict in verify(path))
        with contextlib.suppress(CacheError):
            read_all(path)  # which may or may not see it, and must not crash
    assert noticed >= len(chosen) - 1  # some bytes HDF5 itself does not use


def test_bad_shards_are_named_and_made_again(path: Path) -> None:
    bad = path / "shard-r000-00001.h5"
    data = bytearray(bad.read_bytes())
    at = data.index(shard_arrays(path, 1)["rles"].tobytes())
    data[at + 5] ^= 4
    bad.write_bytes(data)
    (problem,) = [verdict.problem for verdict in verify(path) if verdict.problem]
    assert "shard-r000-00001.h5 is damaged: wrong checksum of its array 'rles'; delete it and run" in problem
    bad.unlink()
    with pytest.raises(StorageError, match=r"shard-r000-00001.h5 cannot be opened: No such file"):
        read_all(path)
    write(path)
    cache = PatchCache(path)
    assert all(same(cache[make_key(i)], make_patches(i)) for i in range(25))


def test_shard_of_another_cache_is_refused(path: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", range(5, 30))
    name = "shard-r000-00000.h5"
    (path / name).write_bytes((other / name).read_bytes())
    with pytest.raises(FormatError, match=f"{name} is not the shard that the manifest lists"):
        read_all(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), r"manifest.json has format version 99, this program reads version 1"),
        (lambda m: m.update(format="else"), r"manifest.json is no manifest"),
        (lambda m: m.pop("shards"), r"manifest.json is damaged: it has no 'shards'"),
        (lambda m: m.update(generators="all"), r"manifest.json is damaged"),
        (lambda m: m["shards"][0].update(file="../../else.h5"), r"manifest.json is damaged: '../../else.h5'"),
        (lambda m: m["shards"][0].update(images=-1), r"manifest.json is damaged"),
        (lambda m: m["index"].update(file="/etc/passwd"), r"manifest.json is damaged: '/etc/passwd'"),
        (lambda m: m["index"].update(checksum="00"), r"index-\w+.h5 is not the index that the manifest names"),
        (lambda m: m["index"].update(images=24), r"index-\w+.h5 is damaged: 25 keys"),
        (lambda m: m.update(failures={"../x": "y"}), r"manifest.json is damaged: '../x' cannot be a key"),
        (lambda m: m["shards"].pop(), r"its index names shard 2, which it does not have"),
    ],
)
def test_damaged_manifest(path: Path, change: Callable[[Any], object], message: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=message):
        read_all(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_none(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"manifest.json is"):
        PatchCache(path)


def test_other_version_of_a_shard(path: Path) -> None:
    shard = path / "shard-r000-00000.h5"
    with h5py.File(shard, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(FormatError, match=r"shard-r000-00000.h5 has format version 2, this program reads version 1"):
        read_all(path)


def test_arrays_that_lie_elsewhere_are_refused(path: Path) -> None:
    """HDF5 can point into other files, and can compress: neither is followed."""
    shard = path / "shard-r000-00000.h5"
    whole = shard.read_bytes()

    def external_link(file: h5py.File) -> None:
        file["rles"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft_link(file: h5py.File) -> None:
        file["rles"] = h5py.SoftLink("/keys")

    def external_storage(file: h5py.File) -> None:
        file.create_dataset("rles", (45,), "u1", external=[("/etc/passwd", 0, 180)])

    def compressed(file: h5py.File) -> None:
        file.create_dataset("rles", (1 << 40,), "u1", chunks=(1 << 20,), compression="gzip")

    def never_written(file: h5py.File) -> None:
        file.create_dataset("rles", (1 << 40,), "u1")

    def never_written_but_small(file: h5py.File) -> None:
        file.create_dataset("rles", (45,), "u1")

    def nothing(file: h5py.File) -> None:
        file.create_dataset("rles", data=h5py.Empty("u1"))

    for change in (
        external_link,
        soft_link,
        external_storage,
        compressed,
        never_written,
        never_written_but_small,
        nothing,
    ):
        shard.write_bytes(whole)
        with h5py.File(shard, "r+") as file:
            checksum = file["rles"].attrs["sha256"]
            del file["rles"]
            change(file)
            if isinstance(file.get("rles", getlink=True), h5py.HardLink):
                file["rles"].attrs["sha256"] = checksum
        with pytest.raises(FormatError, match=r"shard-r000-00000.h5"):
            read_all(path)


def test_index_with_keys_that_climb(path: Path) -> None:
    manifest = Manifest.load(path)
    info = write_index(path, [[b"a", b"../../etc/passwd"]])
    manifest.with_content(manifest.shards, info, {}).save(path)
    with pytest.raises(FormatError, match=r"index-\w+.h5 is damaged or hostile: it holds an unsafe key.*passwd"):
        PatchCache(path)


def test_masks_that_are_none_are_refused_when_used(path: Path) -> None:
    """Right checksums, right lengths, counts that overrun the image: pycocotools would crash."""

    def plant(arrays: Arrays) -> None:
        frames = [pack_masks([b"o" * 6] * n) for n in range(10)]
        arrays["patches"]["rle_length"] = 6
        arrays["images"]["rle_offset"] = np.cumsum([0] + [len(frame) for frame in frames[:-1]])
        arrays["rles"] = np.frombuffer(b"".join(frames), np.uint8)

    rewrite_shard(path, plant)
    patches = PatchCache(path)[make_key(3)]
    for work in (patches.decode, patches.roi_masks, lambda: patches.union([[0]]), lambda: patches.iou(patches)):
        with pytest.raises(CacheError, match="mask 0"):
            work()


def test_join_is_repeatable(path: Path) -> None:
    before = (path / "manifest.json").read_bytes()
    join(path)
    assert (path / "manifest.json").read_bytes() == before
