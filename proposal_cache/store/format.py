"""File format of a cache: shards with the patches of many images, and an index of their keys.

A cache is a directory:

    manifest.json               dataset, generators, list of shards; see manifest.py
    shard-r000-00000.h5 ...     images and their patches, written by rank 0, 1, ...
    index-<checksum>.h5         shard and row of each key
    failures-r000.jsonl         failed images that are not yet in the manifest
    part-00000-of-00008.json    says that a part is finished; see generation/parts.py
    staged/                     shards of Ray's tasks that are not yet in the cache
    .lock-r000                  locked by the process that writes as rank 0
    .lock-manifest              locked while manifest and index are written, and while a rank starts

Columns of a shard; the patches of an image are adjacent:

    keys        keys in UTF-8, each followed by a newline
    images      IMAGE, one row per key: size in pixels, first row in `patches`, first byte in `rles`, and the CRC-32 of
                its rows of `patches`
    patches     PATCH, one row per patch: box (x0, y0, x1, y1 in whole pixels, maximum exclusive), area, scores (NaN if
                missing), index of its generator in the manifest, length of its compressed counts
    rles        one zstd frame per image, with checksum: the compressed counts of its patches, concatenated

Loading an image takes two contiguous reads: its rows of `patches` and its bytes of `rles`. With one column per field
of PATCH it would take seven, and 10 % more time from memory, more from a disk. One zstd frame per image instead of
HDF5's compressed chunks: chunks have a fixed size, so that an image would need several of them decompressed. zstd
compresses as well as zlib and decompresses five times as fast; lz4 is twice as fast again, with files twice as large.

Each column has a SHA-256, which `verify` checks. A load checks the CRC-32 of the rows and zstd's checksum.
"""

import io
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from proposal_cache.errors import CacheError, FormatError, abbreviate
from proposal_cache.store.columns import ColumnFile, Schema

IMAGE = np.dtype(
    [("height", "<u4"), ("width", "<u4"), ("patch_offset", "<u8"), ("rle_offset", "<u8"), ("checksum", "<u4")]
)


def _patch(number: str) -> np.dtype[Any]:
    scores = [("predicted_iou", "<f4"), ("stability_score", "<f4")]
    return np.dtype([("box", number, (4,)), ("area", "<u4"), *scores, ("source", "u1"), ("rle_length", number)])


PATCH, WIDE_PATCH = _patch("<u2"), _patch("<u4")  # WIDE_PATCH if an image side or the counts of a mask exceed 65535

_BYTES = np.dtype("u1")
_NUMBER = np.dtype("<u4")
SHARD_SCHEMA: Schema = {"keys": (_BYTES,), "images": (IMAGE,), "patches": (PATCH, WIDE_PATCH), "rles": (_BYTES,)}
INDEX_SCHEMA: Schema = {"keys": (_BYTES,), "shard": (_NUMBER,), "row": (_NUMBER,)}

SHARD_NAME = re.compile(r"shard-r(\d{3,6})-(\d{5,9})\.h5")
INDEX_NAME = re.compile(r"index-[0-9a-f]{16}\.h5")

# Limits of a valid file, checked before memory is allocated.
MAX_KEY = 4096  # bytes: the longest path on Linux
MAX_IMAGES = 1 << 17  # per shard
MAX_PATCHES = 1 << 20  # per image
MAX_TEXT = 256 << 20  # bytes of counts per image: thousands of patches of noise
MAX_FRAME = MAX_TEXT + (MAX_TEXT >> 8)  # worst case of zstd

# Matches of at least six characters: decompresses 10 % faster than the level's default, with 1 % more bytes.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(6, min_match=6, write_checksum=True)
_UNSAFE_KEY = re.compile(r"(^|/)(\.{1,2})?(/|$)|[\x00-\x1f\x7f\\]")
_CONTROL = bytes({*range(32), 127, ord("\\")} - {ord("\n")})


class _Thread(threading.local):
    """State of one thread: a decompressor is not thread-safe."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_thread = _Thread()


def check_key(key: str) -> None:
    """Raise CacheError unless the key is a relative path with `/` that stays under its root."""
    if _UNSAFE_KEY.search(key):
        raise CacheError(
            f"{key!r} cannot be a key: it must be a relative path with '/', without empty parts, '.', '..', "
            "backslashes or control characters"
        )
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"{key!r} cannot be a key: its file name is not valid text; rename the file") from error
    if len(encoded) > MAX_KEY:
        raise CacheError(f"a key of {len(encoded)} bytes is too long (at most {MAX_KEY}): {abbreviate(key)}")


def shard_name(rank: int, number: int) -> str:
    return f"shard-r{rank:03d}-{number:05d}.h5"


def pack_keys(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(key + b"\n" for key in keys), np.uint8)


def read_keys(file: ColumnFile, count: int) -> bytes:
    """Read the keys of `count` images, each followed by a newline; raise FormatError if one is unsafe or damaged."""
    length = file.columns["keys"].length
    if length > count * (MAX_KEY + 1):
        raise FormatError(f"{file.path} is damaged: {length} bytes of keys are too many for {count} images")
    text = file.read_checked("keys").tobytes()
    if text and not text.endswith(b"\n"):
        raise FormatError(f"{file.path} is damaged: its keys are truncated")
    if (found := text.count(b"\n")) != count:
        raise FormatError(f"{file.path} is damaged: it has {found} keys for {count} images")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{file.path} is damaged or unsafe: it contains a key that is not UTF-8: {error}") from error
    # Equivalent to `check_key` for each, but takes milliseconds for 100,000 keys.
    parts = b"/" + text.replace(b"\n", b"/")
    if any(part in parts for part in (b"//", b"/./", b"/../")) or text.translate(None, _CONTROL) != text:
        unsafe = next(key for key in text.split(b"\n") if _UNSAFE_KEY.search(key.decode(errors="replace")))
        raise FormatError(f"{file.path} is damaged or unsafe: it contains an unsafe key: {abbreviate(unsafe)}")
    return text


def pack_masks(rles: Sequence[bytes]) -> bytes:
    """Compress the masks of an image to one frame; zero masks give zero bytes."""
    if not rles:
        return b""
    text = b"".join(rles)
    if len(text) > MAX_TEXT or len(rles) > MAX_PATCHES:
        raise CacheError(
            f"{len(rles)} masks of {len(text)} bytes in one image are too many: "
            f"at most {MAX_PATCHES} masks and {MAX_TEXT} bytes are supported"
        )
    return zstandard.ZstdCompressor(compression_params=_ZSTD).compress(text)


def unpack_masks(frame: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    """Decompress masks of these lengths; raise CacheError or ZstdError if the frame is damaged or does not match."""
    if not lengths and not frame:
        return ()
    expected = sum(lengths)
    size = zstandard.frame_content_size(frame)  # -1 if unknown
    if size != expected or size > MAX_TEXT:
        raise CacheError(f"its masks have {size} bytes instead of {expected} (at most {MAX_TEXT})")
    return tuple(map(io.BytesIO(_thread.decompressor.decompress(frame)).read, lengths))
