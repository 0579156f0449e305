"""Shard files: buffered in memory and written at once; read image by image."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from proposal_cache import rle
from proposal_cache.errors import CacheError, FormatError
from proposal_cache.patches import Patches
from proposal_cache.store.columns import ColumnFile, open_columns, pack
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import (
    IMAGE,
    MAX_FRAME,
    MAX_IMAGES,
    MAX_PATCHES,
    PATCH,
    SHARD_SCHEMA,
    WIDE_PATCH,
    check_key,
    pack_keys,
    pack_masks,
    read_keys,
    unpack_masks,
)
from proposal_cache.store.manifest import ShardInfo

# A row of `Shard.table`, and the offsets of the next row.
_ENTRY = struct.Struct("<IIQQI8xQQ")
_ROW = IMAGE.itemsize
_FLOAT, _INTEGER = np.dtype(np.float32), np.dtype(np.int64)


class ShardBuffer:
    """Images of the next shard, with compressed masks."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._images: list[tuple[str, tuple[int, int], NDArray[Any], bytes]] = []  # key, size, patches, frame

    def __len__(self) -> int:
        return len(self._images)

    def add(self, key: str, patches: Patches, generators: int) -> None:
        """Add an image; raise CacheError, with its key, if it is invalid in a cache with this number of generators."""
        check_key(key)
        try:
            _check_patches(patches, generators)
            frame = pack_masks(patches.rles)
        except CacheError as error:
            raise type(error)(f"the patches of {key!r} cannot be stored: {error}") from error
        rows = np.empty(len(patches), WIDE_PATCH)
        rows["box"], rows["area"], rows["source"] = patches.boxes, patches.areas, patches.source
        rows["predicted_iou"], rows["stability_score"] = patches.predicted_iou, patches.stability_score
        rows["rle_length"] = [len(counts) for counts in patches.rles]
        self._images.append((key, (patches.height, patches.width), rows, frame))
        self.nbytes += rows.nbytes + len(frame)

    def write(self, path: Path) -> None:
        """Write the shard atomically; the buffer stays unchanged."""
        keys, sizes, tables, frames = zip(*self._images, strict=True)
        patches = np.concatenate(tables)
        longest = max(patches["box"].max(initial=0), patches["rle_length"].max(initial=0))
        patches = patches.astype(PATCH) if longest < 1 << 16 else patches
        images = np.empty(len(self), IMAGE)
        images["height"], images["width"] = np.transpose(sizes)
        images["patch_offset"] = np.cumsum([0, *map(len, tables[:-1])])
        images["rle_offset"] = np.cumsum([0, *map(len, frames[:-1])])
        images["checksum"] = [zlib.crc32(rows.tobytes()) for rows in np.split(patches, images["patch_offset"][1:])]
        columns = {
            "keys": pack_keys(key.encode() for key in keys),
            "images": images,
            "patches": patches,
            "rles": np.frombuffer(b"".join(frames), np.uint8),
        }
        write_durably(path, pack("shard", columns)[0])


@dataclass(frozen=True, slots=True)
class Shard:
    """Open shard: the table of its images. Their patches stay in the file."""

    file: ColumnFile
    info: ShardInfo  # its entry in the manifest
    # Rows of IMAGE with offsets in bytes of the file, and one more row whose offsets are the ends. Packed bytes, so
    # that reading an image touches one location in memory.
    table: bytes
    dtype: np.dtype[Any]  # of a patch
    sources: bytes  # valid values of `source`

    @classmethod
    def open(cls, path: Path, expected: ShardInfo | None = None, generators: int = 256) -> "Shard":
        """Open a shard of a cache with this number of generators and read its table of images.

        Raises:
            FormatError: if it is damaged, exceeds a limit, or differs from `expected`, its entry in the manifest.
            StorageError: if it cannot be read.
        """
        file = open_columns(path, "shard", SHARD_SCHEMA)
        rows, patches, rles = (file.columns[name] for name in ("images", "patches", "rles"))
        info = ShardInfo(path.name, rows.length, patches.length, file.size, file.checksum)
        if expected is not None and info != expected:
            raise FormatError(f"{path} is not the shard in the manifest: it is {info}, not {expected}")
        if info.images > MAX_IMAGES:
            raise FormatError(f"{path} is damaged: {info.images} images exceed the limit of a shard")
        images = file.read_checked("images")
        pixels = images["height"].astype(np.uint64) * images["width"]
        if not ((pixels > 0) & (pixels <= rle.MAX_PIXELS)).all():
            raise FormatError(f"{path} is damaged: one of its images has an invalid size")
        images = np.append(images, np.array([(0, 0, patches.length, rles.length, 0)], IMAGE))
        _check_offsets(path, images["patch_offset"], "patches", MAX_PATCHES)
        _check_offsets(path, images["rle_offset"], "rles", MAX_FRAME)
        images["patch_offset"] = patches.offset + images["patch_offset"] * patches.dtype.itemsize
        images["rle_offset"] += rles.offset
        return cls(file, info, images.tobytes(), patches.dtype, bytes(range(min(generators, 256))))

    def __len__(self) -> int:
        return self.info.images

    def read_keys(self) -> list[bytes]:
        """Read the key of each row."""
        return read_keys(self.file, len(self)).split(b"\n")[:-1]

    def image_size(self, row: int) -> tuple[int, int]:
        """Return height and width of the image of a row."""
        height, width, *_ = _ENTRY.unpack_from(self.table, row * _ROW)
        return height, width

    def read(self, row: int) -> Patches:
        """Read the patches of one image; raise FormatError if they are damaged, StorageError if reading fails."""
        height, width, start, masks, checksum, end, masks_end = _ENTRY.unpack_from(self.table, row * _ROW)
        table = self.file.read_bytes(start, end - start)
        if zlib.crc32(table) != checksum:
            raise FormatError(f"{self.file.path} is damaged: wrong checksum of the patches of image {row}")
        rows = np.frombuffer(table, self.dtype)
        frame = self.file.read_bytes(masks, masks_end - masks)
        try:
            rles = unpack_masks(frame, rows["rle_length"].tolist())
        except (CacheError, zstandard.ZstdError) as error:
            raise FormatError(f"{self.file.path} is damaged: image {row}: {error}") from error
        source = rows["source"].tobytes()
        invalid = source.translate(None, self.sources)  # five times as fast as source.max()
        if invalid:
            raise FormatError(
                f"{self.file.path} is damaged: image {row}: a patch has source {invalid[0]}, "
                f"the manifest has {len(self.sources)} generators"
            )
        columns: dict[str, NDArray[Any]] = {
            "boxes": rows["box"].astype(_FLOAT),
            "areas": rows["area"].astype(_INTEGER),
            "predicted_iou": rows["predicted_iou"].copy(),
            "stability_score": rows["stability_score"].copy(),
            "source": np.frombuffer(source, np.uint8),
        }
        for column in columns.values():
            column.setflags(write=False)
        return Patches.unchecked(height=height, width=width, rles=rles, **columns)


def _check_patches(patches: Patches, generators: int) -> None:
    """Raise CacheError if masks are invalid or other columns do not match them and the number of generators."""
    areas, boxes = rle.area_and_box(patches.rles, patches.height, patches.width)
    if not (np.array_equal(areas, patches.areas) and np.array_equal(boxes, patches.boxes)):
        raise CacheError("their boxes or areas do not match their masks")
    if patches.source.max(initial=0) >= generators:
        raise CacheError(
            f"one has source {patches.source.max()}, but the cache has {generators} generators, counted from 0: "
            "pass the description of every generator to the writer"
        )


def _check_offsets(path: Path, offsets: NDArray[Any], column: str, limit: int) -> None:
    """Raise FormatError unless offsets into a column start at 0 and increase by at most `limit`."""
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"{path} is damaged: the offsets into column '{column}' are not ascending")
    if (offsets[1:] - offsets[:-1] > limit).any():
        raise FormatError(f"{path} is damaged: one of its images has more than {limit} elements of column '{column}'")
