"""What the files of a cache hold: shards with the patches of many images, and the index of their keys.

A cache is a directory:

    manifest.json               what it holds, who made it and how; see manifest.py
    shard-r000-00000.h5 ...     images and their patches, written by rank 0, 1, ...
    index-<checksum>.h5         which shard and row each key is in
    failures-r000.jsonl         images that could not be done, until the manifest has them
    .lock-r000                  held by the process that writes as rank 0

Arrays of a shard, the patches of an image lying together:

    keys        the keys as UTF-8, each followed by a newline
    images      a table of IMAGE, one row for each key: its size in pixels, where its rows of `patches` begin, where its
                bytes of `rles` do, and the CRC-32 of its rows of `patches`
    patches     a table of PATCH: box (x0, y0, x1, y1 in whole pixels, maximum exclusive), area, scores (NaN where the
                generator gives none), which of the manifest's generators made it, characters of its compressed counts
    rles        for each image one zstd frame, with checksum, of its patches' compressed counts

An image is thus two reads, each in one piece: its rows of `patches` and its bytes of `rles`. Were each column of the
table an array of its own, as HDF5 would allow, it would be seven, and a load a tenth slower from memory, worse from a
disk. Frames for each image, and not HDF5's chunks with a filter: a chunk is of fixed size, so that an image would need
parts of several unpacked. zstd: as small as zlib, unpacked five times as fast; lz4 is twice as fast and half as good.

Each array has its SHA-256, which `verify` reads. A load checks the CRC-32 of the rows and zstd's checksum of the frame,
so that damage is never served.
"""

import io
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from proposal_cache.errors import CacheError
from proposal_cache.store.columns import Schema

IMAGE = np.dtype(
    [("height", "<u4"), ("width", "<u4"), ("patch_offset", "<u8"), ("rle_offset", "<u8"), ("checksum", "<u4")]
)


def _patch(number: str) -> np.dtype[Any]:
    scores = [("predicted_iou", "<f4"), ("stability_score", "<f4")]
    return np.dtype([("box", number, (4,)), ("area", "<u4"), *scores, ("source", "u1"), ("rle_length", number)])


PATCH, WIDE_PATCH = _patch("<u2"), _patch("<u4")  # wide where an image or the counts of a mask are longer than 65535

_BYTES = np.dtype("u1")
_NUMBER = np.dtype("<u4")
SHARD_SCHEMA: Schema = {"keys": (_BYTES,), "images": (IMAGE,), "patches": (PATCH, WIDE_PATCH), "rles": (_BYTES,)}
INDEX_SCHEMA: Schema = {"keys": (_BYTES,), "shard": (_NUMBER,), "row": (_NUMBER,)}

SHARD_NAME = re.compile(r"shard-r(\d{3,6})-(\d{5,9})\.h5")
INDEX_NAME = re.compile(r"index-[0-9a-f]{16}\.h5")

# What a file may claim before it is refused unread.
MAX_KEY = 4096  # bytes: the longest path there is
MAX_IMAGES = 1 << 17  # of a shard
MAX_PATCHES = 1 << 20  # of one image
MAX_TEXT = 256 << 20  # bytes of counts of one image: thousands of patches of noise
MAX_FRAME = MAX_TEXT + (MAX_TEXT >> 8)  # what zstd makes of them at worst

_thread = threading.local()

# Repetitions of six characters and more alone: a tenth faster to unpack than the level's own choice, at 1 % more.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(6, min_match=6, write_checksum=True)
_UNSAFE_KEY = re.compile(r"(^|/)(\.{1,2})?(/|$)|[\x00-\x1f\x7f\\]")
_CONTROL = bytes({*range(32), 127, ord("\\")} - {ord("\n")})


def check_key(key: str) -> None:
    """Raises `CacheError` unless the key is a relative path with `/` that stays under its root."""
    if _UNSAFE_KEY.search(key):
        raise CacheError(
            f"{key!r} cannot be a key: it must be a relative path with '/', without empty parts, '.', '..', "
            "backslashes or control characters"
        )
    try:
        encoded = key.encode()
    except UnicodeEncodeError as error:
        raise CacheError(f"{key!r} cannot be a key: its file name is no valid text; rename the file") from error
    if len(encoded) > MAX_KEY:
        raise CacheError(f"a key of {len(encoded)} bytes is too long ({MAX_KEY} at most): {key[:60]!r}...")


def shard_name(rank: int, number: int) -> str:
    return f"shard-r{rank:03d}-{number:05d}.h5"


def pack_keys(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(key + b"\n" for key in keys), np.uint8)


def key_text(array: NDArray[np.uint8]) -> bytes:
    """The text of an array of keys that may come from anywhere: each key followed by a newline.

    Raises:
        CacheError: if a key could lead out of a folder.
    """
    text = array.tobytes()
    if text and not text.endswith(b"\n"):
        raise CacheError("its keys break off")
    # As `check_key`, for all at once: a hundred thousand keys in milliseconds.
    parts = b"/" + text.replace(b"\n", b"/")
    if any(part in parts for part in (b"//", b"/./", b"/../")) or text.translate(None, _CONTROL) != text:
        unsafe = next(key for key in text.split(b"\n") if _UNSAFE_KEY.search(key.decode(errors="replace")))
        raise CacheError(f"it holds an unsafe key: {unsafe[:60]!r}")
    return text


def unpack_keys(array: NDArray[np.uint8]) -> list[bytes]:
    """The keys in such an array."""
    return key_text(array).split(b"\n")[:-1]


def pack_masks(rles: Sequence[bytes]) -> bytes:
    """One frame of all the masks of an image; no bytes for no masks."""
    if not rles:
        return b""
    text = b"".join(rles)
    if len(text) > MAX_TEXT or len(rles) > MAX_PATCHES:
        raise CacheError(
            f"{len(rles)} masks of {len(text)} bytes for one image are too many: "
            f"{MAX_PATCHES} of {MAX_TEXT} bytes are possible"
        )
    return zstandard.ZstdCompressor(compression_params=_ZSTD).compress(text)


def unpack_masks(frame: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    """The masks in a frame that may come from anywhere.

    Args:
        frame: as made by `pack_masks`.
        lengths: characters of each mask.

    Raises:
        CacheError: if it is damaged, or does not hold masks of these lengths.
    """
    if not lengths and not frame:
        return ()
    promised = sum(lengths)
    try:
        size = zstandard.frame_content_size(frame)  # -1 where the frame does not say
        if size != promised or size > MAX_TEXT:
            raise CacheError(f"its masks claim {size} bytes where {promised} are promised ({MAX_TEXT} at most)")
        text = _decompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise CacheError(f"its masks are damaged ({error})") from error
    return tuple(map(io.BytesIO(text).read, lengths))


def _decompressor() -> zstandard.ZstdDecompressor:
    """One for each thread, which may not share it."""
    try:
        return _thread.decompressor
    except AttributeError:
        _thread.decompressor = zstandard.ZstdDecompressor()
        return _thread.decompressor
