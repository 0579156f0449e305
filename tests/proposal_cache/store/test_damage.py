"""Damaged and malicious caches are rejected, with the name of the file, before memory is allocated."""

import contextlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zstandard

from proposal_cache import CacheError, CacheWriter, PatchCache, finalize, verify
from proposal_cache.errors import FormatError, StorageError
from proposal_cache.store import Manifest
from proposal_cache.store.columns import combined_checksum, open_columns, pack
from proposal_cache.store.format import IMAGE, INDEX_SCHEMA, SHARD_SCHEMA, WIDE_PATCH, pack_masks
from proposal_cache.store.index import write_index
from tests.proposal_cache.toy_cache import GENERATOR, check, make_key, make_patches, same, write

Columns = dict[str, np.ndarray]


def read_columns(path: Path, number: int = 0) -> Columns:
    with h5py.File(sorted(path.glob("shard-*"))[number]) as file:
        return {name: dataset[()] for name, dataset in file.items()}


def rewrite_shard(path: Path, change: Callable[[Columns], object]) -> None:
    """Change the first shard, and update checksums and manifest to match."""
    columns = read_columns(path)
    change(columns)
    if columns["images"].ndim == 1:
        parts = np.split(columns["patches"], columns["images"]["patch_offset"][1:])
        columns["images"]["checksum"] = [zlib.crc32(part.tobytes()) for part in parts]
    (path / "shard-r000-00000.h5").write_bytes(pack("shard", columns)[0])
    update_manifest_entry(path)


def change_manifest(path: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def update_manifest_entry(path: Path) -> None:
    """Recompute the manifest entry of the first shard."""
    shard = path / "shard-r000-00000.h5"
    with h5py.File(shard) as file:
        info = {"images": len(file["images"]), "patches": len(file["patches"]), "bytes": shard.stat().st_size}
        info["checksum"] = combined_checksum({name: data.attrs["sha256"].decode() for name, data in file.items()})
    change_manifest(path, lambda manifest: manifest["shards"][0].update(info))


def read_all(path: Path) -> None:
    cache = PatchCache(path)
    for key in cache:
        cache[key].decode()


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def set_images(column: str, values: Any) -> Callable[[Columns], None]:
    return lambda columns: columns["images"].__setitem__(column, values)


def drop_last(name: str) -> Callable[[Columns], None]:
    return lambda columns: columns.update({name: columns[name][:-1]})


def huge_mask_lengths(columns: Columns) -> None:
    columns["patches"] = columns["patches"].astype(WIDE_PATCH)
    columns["patches"]["rle_length"] = 1 << 31


INVALID_CONTENT = {
    "huge image size": set_images("height", 1 << 31),
    "no pixels": set_images("width", 0),
    "fewer images": drop_last("images"),
    "patches beyond the end": set_images("patch_offset", [0] * 9 + [1 << 62]),
    "patches not from 0": set_images("patch_offset", range(1, 11)),
    "descending patch offsets": set_images("patch_offset", [0, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
    "masks beyond the end": set_images("rle_offset", [0] * 9 + [(1 << 64) - 1]),
    "fewer patches": drop_last("patches"),
    "fewer masks": drop_last("rles"),
    "other row type": lambda columns: columns.update(patches=np.zeros(45, [("box", "<f4", (4,))])),
    "huge mask lengths": huge_mask_lengths,
    "unknown source": lambda columns: columns["patches"].__setitem__("source", 1),
    "two-dimensional images": lambda columns: columns.update(images=np.zeros((10, 2), IMAGE)),
    "no keys": lambda columns: columns.update(keys=np.zeros(0, np.uint8)),
    "keys outside the root": lambda columns: columns.update(keys=np.frombuffer(b"../up\n" * 10, np.uint8)),
}


@pytest.mark.parametrize("case", INVALID_CONTENT)
def test_invalid_shard_content(cache_path: Path, case: str) -> None:
    rewrite_shard(cache_path, INVALID_CONTENT[case])
    verdicts = {verdict.file: verdict.problem for verdict in verify(cache_path)}
    if "keys" not in case:  # reading takes keys from the index
        with pytest.raises(FormatError, match="shard-r000-00000.h5"):
            read_all(cache_path)
    assert "shard-r000-00000.h5" in str(verdicts["shard-r000-00000.h5"])
    assert verdicts["shard-r000-00001.h5"] is None


def test_decompression_bomb(cache_path: Path) -> None:
    """A short frame that claims to decompress to 3 GB, consistent with the lengths."""
    size, claim = 1 << 20, 3 << 30
    bomb = zstandard.ZstdCompressor().compress(bytes(size))
    bomb = bomb.replace(size.to_bytes(4, "little"), claim.to_bytes(4, "little"), 1)
    assert zstandard.get_frame_parameters(bomb).content_size == claim

    def change(columns: Columns) -> None:
        huge_mask_lengths(columns)
        columns["patches"]["rle_length"][0] = claim  # the only patch of image 1
        columns["images"]["rle_offset"] = [0, 0] + [len(bomb)] * 8
        columns["rles"] = np.frombuffer(bomb, np.uint8)

    rewrite_shard(cache_path, change)
    with pytest.raises(FormatError, match=r"00000.h5 is damaged: image 1: its masks have 3221225472"):
        PatchCache(cache_path)[make_key(1)]


def test_truncated_shard(cache_path: Path) -> None:
    shard = cache_path / "shard-r000-00001.h5"
    whole = shard.read_bytes()
    for length in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        shard.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"shard-r000-00001.h5"):
            read_all(cache_path)
        assert [verdict.file for verdict in verify(cache_path) if verdict.problem] == [shard.name]
        for resume in (lambda: CacheWriter(cache_path, GENERATOR, "toys"), lambda: finalize(cache_path)):
            with pytest.raises(FormatError, match=r"shard-r000-00001.h5 .*; delete it and repeat the command"):
                resume()


def test_shard_truncated_while_open(cache_path: Path) -> None:
    cache = PatchCache(cache_path)
    cache[make_key(9)]
    for shard in cache_path.glob("shard-*"):
        os.truncate(shard, 3000)
    with pytest.raises(FormatError, match=r"shard-r000-00000.h5 is truncated"):
        list(map(cache.get, map(make_key, range(10))))


def test_flipped_bytes_of_a_shard(tmp_path: Path) -> None:
    """Every used byte of a shard is covered by a checksum, HDF5's own or a column's."""
    path = write(tmp_path / "cache", range(5))
    (shard,) = path.glob("shard-*")
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    chosen = rng.choice(np.flatnonzero([*whole]), 80, replace=False).tolist()  # zeros are mostly padding
    detected = 0
    for at in chosen:
        shard.write_bytes(flipped(whole, at, rng.integers(8)))
        detected += any(verdict.problem and shard.name in verdict.problem for verdict in verify(path))
        with contextlib.suppress(CacheError):
            cache = PatchCache(path)  # may not detect it, but must not return wrong patches
            assert all(same(cache[make_key(i)], make_patches(i)) for i in range(5))
    assert detected >= len(chosen) - 1  # HDF5 does not use every byte


def test_flipped_bits_of_patches(tmp_path: Path) -> None:
    """Reading verifies the checksum of boxes, areas, scores and sources."""
    path = write(tmp_path / "cache", range(4))
    (shard,) = path.glob("shard-*")
    whole = shard.read_bytes()
    rows = read_columns(path)["patches"].tobytes()
    start = whole.index(rows)
    for at in range(start, start + len(rows)):
        shard.write_bytes(flipped(whole, at, at % 8))
        with pytest.raises(FormatError, match=r"00000.h5 is damaged: wrong checksum of the patches of image \d"):
            read_all(path)


SPARSE = [("index", "keys"), ("index", "shard"), ("index", "row"), *(("shard", name) for name in SHARD_SCHEMA)]


@pytest.mark.parametrize(("kind", "name"), SPARSE)
@pytest.mark.parametrize("manifest_agrees", [False, True])
def test_sparse_files_do_not_exhaust_memory(cache_path: Path, kind: str, name: str, manifest_agrees: bool) -> None:
    """A column may claim gigabytes that are not allocated on disk."""
    (file,) = cache_path.glob("index-*" if kind == "index" else "shard-r000-00000*")
    make_sparse(file, name, 1 << 31)
    if kind == "index":
        checksum = open_columns(file, kind, INDEX_SCHEMA).checksum
        change_manifest(cache_path, lambda manifest: manifest["index"].update(checksum=checksum))
    elif manifest_agrees:
        update_manifest_entry(cache_path)
    tracemalloc.start()
    try:
        if (kind, name) != ("shard", "keys"):  # reading takes keys from the index
            with pytest.raises(FormatError, match=file.name):
                read_all(cache_path)
        assert any(verdict.problem and file.name in verdict.problem for verdict in verify(cache_path))
        with contextlib.suppress(FormatError):
            CacheWriter(cache_path, GENERATOR, "toys").close()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def make_sparse(path: Path, name: str, length: int) -> None:
    with h5py.File(path, "r+") as file:
        dtype = h5py.h5t.py_create(file[name].dtype)
        del file[name]
        storage = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        storage.set_layout(h5py.h5d.CONTIGUOUS)
        storage.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        storage.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((length,))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, name.encode(), dtype, space, storage))
        dataset.attrs["sha256"] = np.bytes_("0" * 64)


def test_repair_of_a_damaged_shard(cache_path: Path) -> None:
    bad = cache_path / "shard-r000-00001.h5"
    data = bad.read_bytes()
    bad.write_bytes(flipped(data, data.index(read_columns(cache_path, 1)["rles"].tobytes()) + 5, 2))
    (problem,) = [verdict.problem for verdict in verify(cache_path) if verdict.problem]
    assert "shard-r000-00001.h5 is damaged: wrong checksum of column 'rles'; delete it and run" in problem
    bad.unlink()
    (problem,) = [verdict.problem for verdict in verify(cache_path) if verdict.problem]
    assert "No such file or directory, but manifest.json names it; copy it there again" in problem
    with pytest.raises(StorageError, match=r"shard-r000-00001.h5 cannot be opened: No such file"):
        read_all(cache_path)
    check(write(cache_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=1), r"manifest.json has format version 1, this program reads version 2: generate"),
        (lambda m: m["generators"][0].update(t=float("nan")), r"manifest.json is damaged: a generator must be"),
        (lambda m: m.update(format="else"), r"manifest.json is not a manifest"),
        (lambda m: m.pop("shards"), r"manifest.json is damaged: 'shards' is missing"),
        (lambda m: m.update(generators="all"), r"manifest.json is damaged"),
        (lambda m: m["shards"][0].update(file="../../else.h5"), r"manifest.json is damaged: '../../else.h5'"),
        (lambda m: m["shards"][0].update(images=-1), r"manifest.json is damaged"),
        (lambda m: m["index"].update(file="/etc/passwd"), r"manifest.json is damaged: '/etc/passwd'"),
        (lambda m: m["index"].update(checksum="00"), r"index-\w+.h5 is not the index in the manifest"),
        (lambda m: m["index"].update(images=24), r"index-\w+.h5 is damaged: .* for 24 images"),
        (lambda m: m["shards"][0].update(images=9), r"shard-r000-00000.h5 is not the shard in the manifest"),
        (lambda m: m["shards"][0].update(bytes=9), r"shard-r000-00000.h5 is not the shard in the manifest"),
        (lambda m: m["shards"][0].update(checksum="00"), r"shard-r000-00000.h5 is not the shard in the manifest"),
        (lambda m: m.update(failures={"../x": "y"}), r"manifest.json is damaged: '../x' cannot be a key"),
        (lambda m: m["shards"].pop(), r"manifest.json is damaged: the index points to shard 2"),
        (lambda m: m["shards"].pop(0), r"its index is not of the shards in its manifest"),
    ],
)
def test_damaged_manifest(cache_path: Path, change: Callable[[Any], object], message: str) -> None:
    change_manifest(cache_path, change)
    with pytest.raises(FormatError, match=message):
        read_all(cache_path)


@pytest.mark.parametrize(
    ("entry", "file", "remedy"),
    [("index", "index-0000000000000000.h5", "`proposal-cache finalize`"), (0, "shard-r009-00000.h5", "copy it there")],
)
def test_manifest_that_names_a_missing_file(cache_path: Path, entry: str | int, file: str, remedy: str) -> None:
    change_manifest(cache_path, lambda m: (m["index"] if entry == "index" else m["shards"][entry]).update(file=file))
    message = f"{file} cannot be opened: No such file or directory, but manifest.json names it; {remedy}"
    with pytest.raises(StorageError, match=message):
        read_all(cache_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_invalid_manifest_json(cache_path: Path, content: bytes) -> None:
    (cache_path / "manifest.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"manifest.json is"):
        PatchCache(cache_path)


def test_unsupported_shard_version(cache_path: Path) -> None:
    with h5py.File(cache_path / "shard-r000-00000.h5", "r+") as file:
        file.attrs["version"] = 1
    with pytest.raises(FormatError, match=r"00000.h5 has format version 1, this program reads version 2: generate the"):
        read_all(cache_path)


UNSUPPORTED_STORAGE: dict[str, Callable[[h5py.File], object]] = {
    "external link": lambda file: file.__setitem__("rles", h5py.ExternalLink("/etc/passwd", "/")),
    "soft link": lambda file: file.__setitem__("rles", h5py.SoftLink("/keys")),
    "external file": lambda file: file.create_dataset("rles", (45,), "u1", external=[("/etc/passwd", 0, 180)]),
    "compressed": lambda file: file.create_dataset("rles", (1 << 40,), "u1", chunks=(1 << 20,), compression="gzip"),
    "never written": lambda file: file.create_dataset("rles", (1 << 40,), "u1"),
    "never written but small": lambda file: file.create_dataset("rles", (45,), "u1"),
    "empty": lambda file: file.create_dataset("rles", data=h5py.Empty("u1")),
}


@pytest.mark.parametrize("case", UNSUPPORTED_STORAGE)
def test_columns_outside_the_file_are_rejected(cache_path: Path, case: str) -> None:
    """HDF5 supports links, external and compressed storage; none of them is allowed."""
    with h5py.File(cache_path / "shard-r000-00000.h5", "r+") as file:
        checksum = file["rles"].attrs["sha256"]
        del file["rles"]
        UNSUPPORTED_STORAGE[case](file)
        if isinstance(file.get("rles", getlink=True), h5py.HardLink):
            file["rles"].attrs["sha256"] = checksum
    with pytest.raises(FormatError, match=r"shard-r000-00000.h5"):
        read_all(cache_path)


def test_index_with_unsafe_keys(cache_path: Path) -> None:
    index = write_index(cache_path, [[b"a", b"../../etc/passwd"]])
    replace(Manifest.load(cache_path), index=index).save(cache_path)
    with pytest.raises(FormatError, match=r"index-\w+.h5 is damaged or unsafe: it contains an unsafe key.*passwd"):
        PatchCache(cache_path)


def test_keys_that_are_not_utf_8(cache_path: Path) -> None:
    """Checksums are valid, as of a file written by another program."""
    index = write_index(cache_path, [[b"a", b"b\xff"]])
    replace(Manifest.load(cache_path), index=index).save(cache_path)
    with pytest.raises(FormatError, match=r"index-\w+.h5 is damaged or unsafe: it contains a key that is not UTF-8"):
        PatchCache(cache_path)


def test_opening_while_the_index_is_replaced(cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`finalize` writes a new manifest and removes the old index after the manifest was read."""
    load, loads = Manifest.load, iter([True])

    def finalize_after_loading(cache: Path) -> Manifest:
        manifest = load(cache)
        if next(loads, False):
            with CacheWriter(cache_path, GENERATOR, "toys") as writer:
                writer.add("another", make_patches(1))
        return manifest

    monkeypatch.setattr(Manifest, "load", finalize_after_loading)
    assert "another" in PatchCache(cache_path)


@pytest.mark.parametrize(
    "line", ['{"key": "../x", "reason": ""}', '{"key": 7, "reason": ""}', "[" * 100_000, "[]", "\xff"]
)
def test_invalid_lines_of_a_failure_journal_are_skipped(cache_path: Path, line: str) -> None:
    (cache_path / "failures-r000.jsonl").write_text(f'{line}\n{{"key": "bad", "reason": "empty"}}\n', "latin-1")
    assert finalize(cache_path).failures == {"bad": "empty"}
    PatchCache(cache_path)


def test_invalid_masks_are_rejected_on_use(cache_path: Path) -> None:
    """Checksums and lengths match, but counts exceed the image: pycocotools would crash."""

    def change(columns: Columns) -> None:
        frames = [pack_masks([b"o" * 6] * n) for n in range(10)]
        columns["patches"]["rle_length"] = 6
        columns["images"]["rle_offset"] = np.cumsum([0] + [len(frame) for frame in frames[:-1]])
        columns["rles"] = np.frombuffer(b"".join(frames), np.uint8)

    rewrite_shard(cache_path, change)
    patches = PatchCache(cache_path)[make_key(3)]
    for work in (patches.decode, patches.roi_masks, lambda: patches.union([[0]]), lambda: patches.iou(patches)):
        with pytest.raises(CacheError, match="mask 0"):
            work()
