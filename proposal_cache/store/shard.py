"""Shard files: buffered in memory and written at once; read image by image."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import CacheError, FormatError
from proposal_cache.patches import Patches
from proposal_cache.rle.codec import MAX_PIXELS
from proposal_cache.store.columns import ColumnFile, open_columns, pack
from proposal_cache.store.durable import write_durably
from proposal_cache.store.format import (
    IMAGE,
    MAX_FRAME,
    MAX_IMAGES,
    MAX_KEY,
    MAX_PATCHES,
    PATCH,
    SHARD_SCHEMA,
    WIDE_PATCH,
    pack_keys,
    pack_masks,
    unpack_keys,
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
        self.keys: list[str] = []
        self.nbytes = 0
        self._images: list[tuple[int, int, int, int, int]] = []
        self._patches: list[NDArray[Any]] = []
        self._frames: list[bytes] = []
        self._patch_offset = self._rle_offset = 0

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, patches: Patches) -> None:
        frame = pack_masks(patches.rles)
        rows = np.empty(len(patches), WIDE_PATCH)
        rows["box"], rows["area"], rows["source"] = patches.boxes, patches.areas, patches.source
        rows["predicted_iou"], rows["stability_score"] = patches.predicted_iou, patches.stability_score
        rows["rle_length"] = [len(counts) for counts in patches.rles]
        self.keys.append(key)
        self._images.append((patches.height, patches.width, self._patch_offset, self._rle_offset, 0))
        self._patches.append(rows)
        self._frames.append(frame)
        self._patch_offset += len(patches)
        self._rle_offset += len(frame)
        self.nbytes += rows.nbytes + len(frame)

    def write(self, path: Path) -> None:
        """Write the shard atomically; the buffer stays unchanged."""
        patches = np.concatenate(self._patches)
        longest = max(patches["box"].max(initial=0), patches["rle_length"].max(initial=0))
        patches = patches.astype(PATCH) if longest < 1 << 16 else patches
        images = np.array(self._images, IMAGE)
        images["checksum"] = [zlib.crc32(rows.tobytes()) for rows in np.split(patches, images["patch_offset"][1:])]
        columns = {
            "keys": pack_keys(key.encode() for key in self.keys),
            "images": images,
            "patches": patches,
            "rles": np.frombuffer(b"".join(self._frames), np.uint8),
        }
        write_durably(path, pack("shard", columns)[0])


@dataclass(frozen=True, slots=True)
class Shard:
    """Open shard: the table of its images. Their patches stay in the file.

    Attributes:
        file: the open file.
        table: rows of IMAGE with offsets in bytes of the file, and one more row whose offsets are the ends. Packed
            bytes, so that reading an image touches one location in memory.
        dtype: of a patch.
        sources: valid values of `source`.
    """

    file: ColumnFile
    table: bytes
    dtype: np.dtype[Any]
    sources: bytes

    @classmethod
    def open(cls, path: Path, info: ShardInfo | None = None, generators: int = 256) -> "Shard":
        """Open a shard and read its table of images.

        Args:
            path: of the file.
            info: its entry in the manifest, compared if given.
            generators: number of generators in the manifest.

        Raises:
            FormatError: if it is damaged, exceeds a limit, or differs from `info`.
            StorageError: if it cannot be read.
        """
        file = open_columns(path, "shard", SHARD_SCHEMA)
        _check_sizes(file, info)
        images = file.read_checked("images")
        pixels = images["height"].astype(np.uint64) * images["width"]
        if not ((pixels > 0) & (pixels <= MAX_PIXELS)).all():
            raise FormatError(f"{path} is damaged: one of its images has an invalid size")
        patches, rles = file.columns["patches"], file.columns["rles"]
        images = np.append(images, np.array([(0, 0, patches.length, rles.length, 0)], IMAGE))
        _check_offsets(path, images["patch_offset"], "patches", MAX_PATCHES)
        _check_offsets(path, images["rle_offset"], "rles", MAX_FRAME)
        images["patch_offset"] = patches.offset + images["patch_offset"] * patches.dtype.itemsize
        images["rle_offset"] += rles.offset
        return cls(file, images.tobytes(), patches.dtype, bytes(range(min(generators, 256))))

    def __len__(self) -> int:
        return len(self.table) // _ROW - 1

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def info(self) -> ShardInfo:
        """Its entry in the manifest."""
        patches = self.file.columns["patches"].length
        return ShardInfo(self.path.name, len(self), patches, self.file.size, self.file.checksum)

    def read_keys(self) -> list[bytes]:
        """Read the key of each row."""
        try:
            keys = unpack_keys(self.file.read_checked("keys"))
        except FormatError:
            raise
        except CacheError as error:
            raise FormatError(f"{self.path} is damaged or unsafe: {error}") from error
        if len(keys) != len(self):
            raise FormatError(f"{self.path} is damaged: it has {len(keys)} keys for {len(self)} images")
        return keys

    def read(self, row: int) -> Patches:
        """Read the patches of one image.

        Raises:
            FormatError: if a checksum is wrong, or a patch has an invalid source.
            StorageError: if the file cannot be read.
        """
        height, width, start, masks, checksum, end, masks_end = _ENTRY.unpack_from(self.table, row * _ROW)
        table = self.file.read_bytes(start, end - start)
        if zlib.crc32(table) != checksum:
            raise FormatError(f"{self.path} is damaged: wrong checksum of the patches of image {row}")
        rows = np.frombuffer(table, self.dtype)
        frame = self.file.read_bytes(masks, masks_end - masks)
        try:
            rles = unpack_masks(frame, rows["rle_length"].tolist())
        except CacheError as error:
            raise FormatError(f"{self.path} is damaged: image {row}: {error}") from error
        source = rows["source"].tobytes()
        invalid = source.translate(None, self.sources)  # five times as fast as source.max()
        if invalid:
            raise FormatError(
                f"{self.path} is damaged: image {row}: a patch has source {invalid[0]}, "
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


def _check_sizes(file: ColumnFile, info: ShardInfo | None) -> None:
    """Raise FormatError if the file differs from its manifest entry, or exceeds the limits of a shard."""
    images, keys = file.columns["images"].length, file.columns["keys"].length
    found = ShardInfo(file.path.name, images, file.columns["patches"].length, file.size, file.checksum)
    if info is not None and info != found:
        raise FormatError(f"{file.path} is not the shard in the manifest: it is {found}, not {info}")
    if images > MAX_IMAGES or keys > images * (MAX_KEY + 1):
        raise FormatError(
            f"{file.path} is damaged: {images} images and {keys} bytes of keys exceed the limits of a shard"
        )


def _check_offsets(path: Path, offsets: NDArray[Any], column: str, limit: int) -> None:
    """Raise FormatError unless offsets into a column start at 0 and increase by at most `limit`."""
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"{path} is damaged: the offsets into column '{column}' are not ascending")
    if (offsets[1:] - offsets[:-1] > limit).any():
        raise FormatError(f"{path} is damaged: one of its images has more than {limit} elements of column '{column}'")
