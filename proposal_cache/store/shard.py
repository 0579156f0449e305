"""One shard: gathered in memory and written at one stroke; read image by image."""

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
from proposal_cache.store.columns import ArrayFile, open_arrays, pack
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

# A row of `Shard.places`, and of the next row its offsets.
_PLACE = struct.Struct("<IIQQI8xQQ")
_ROW = IMAGE.itemsize
_FLOAT, _INTEGER = np.dtype(np.float32), np.dtype(np.int64)


class ShardBuffer:
    """Images on their way into a shard, their masks compressed already."""

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
        """Writes the shard, complete or not at all; the buffer stays as it is."""
        patches = np.concatenate(self._patches)
        longest = max(patches["box"].max(initial=0), patches["rle_length"].max(initial=0))
        patches = patches.astype(PATCH) if longest < 1 << 16 else patches
        images = np.array(self._images, IMAGE)
        images["checksum"] = [zlib.crc32(rows.tobytes()) for rows in np.split(patches, images["patch_offset"][1:])]
        arrays = {
            "keys": pack_keys(key.encode() for key in self.keys),
            "images": images,
            "patches": patches,
            "rles": np.frombuffer(b"".join(self._frames), np.uint8),
        }
        write_durably(path, pack("shard", arrays)[0])


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard laid open: where its images lie. Their patches stay in the file.

    Attributes:
        file: the open file.
        places: its table of images, with offsets in bytes of the file, and one row more, whose offsets are the ends.
            One piece of memory, of which a load looks at one place: with a hundred shards, nothing of them is in the
            processor's cache.
        dtype: of a patch.
        sources: the numbers that `source` may have.
    """

    file: ArrayFile
    places: bytes
    dtype: np.dtype[Any]
    sources: bytes

    @classmethod
    def open(cls, path: Path, info: ShardInfo | None = None, generators: int = 256) -> "Shard":
        """Opens a shard and reads what belongs to its images, nothing of their patches.

        Args:
            path: of the file.
            info: what the manifest says of it.
            generators: how many the manifest names.

        Raises:
            FormatError: where it is damaged, truncated, hostile, or not the one that the manifest means by `info`.
            StorageError: where it cannot be read.
        """
        file = open_arrays(path, "shard", SHARD_SCHEMA)
        _check_sizes(file, info)
        images = file.read_checked("images")
        pixels = images["height"].astype(np.uint64) * images["width"]
        if not ((pixels > 0) & (pixels <= MAX_PIXELS)).all():
            raise FormatError(f"{path} is damaged: an image of it has an impossible size")
        patches, rles = file.arrays["patches"], file.arrays["rles"]
        images = np.append(images, np.array([(0, 0, patches.length, rles.length, 0)], IMAGE))
        _check_offsets(path, images["patch_offset"], "patches", MAX_PATCHES)
        _check_offsets(path, images["rle_offset"], "rles", MAX_FRAME)
        images["patch_offset"] = patches.offset + images["patch_offset"] * patches.dtype.itemsize
        images["rle_offset"] += rles.offset
        return cls(file, images.tobytes(), patches.dtype, bytes(range(min(generators, 256))))

    def __len__(self) -> int:
        return len(self.places) // _ROW - 1

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def info(self) -> ShardInfo:
        """The manifest's entry for it."""
        patches = self.file.arrays["patches"].length
        return ShardInfo(self.path.name, len(self), patches, self.file.size, self.file.checksum)

    def read_keys(self) -> list[bytes]:
        """The key of each row."""
        try:
            keys = unpack_keys(self.file.read_checked("keys"))
        except FormatError:
            raise
        except CacheError as error:
            raise FormatError(f"{self.path} is damaged or hostile: {error}") from error
        if len(keys) != len(self):
            raise FormatError(f"{self.path} is damaged: it has {len(keys)} keys for {len(self)} images")
        return keys

    def read(self, row: int) -> Patches:
        """The patches of one image: its rows of the table and its masks, each read at one stroke.

        Raises:
            FormatError: where the checksum of either is wrong, or a patch is of none of the generators.
            StorageError: where they cannot be read.
        """
        height, width, start, masks, checksum, end, masks_end = _PLACE.unpack_from(self.places, row * _ROW)
        table = self.file.read_bytes(start, end - start)
        if zlib.crc32(table) != checksum:
            raise FormatError(f"{self.path} is damaged: wrong checksum of the patches of its image {row}")
        rows = np.frombuffer(table, self.dtype)
        frame = self.file.read_bytes(masks, masks_end - masks)
        try:
            rles = unpack_masks(frame, rows["rle_length"].tolist())
        except CacheError as error:
            raise FormatError(f"{self.path} is damaged: in its image {row}, {error}") from error
        source = rows["source"].tobytes()
        foreign = source.translate(None, self.sources)  # source.max() takes five times as long
        if foreign:
            raise FormatError(
                f"{self.path} is damaged: in its image {row}, a patch is of generator {foreign[0]}, "
                f"of {len(self.sources)} counted from 0"
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


def _check_sizes(file: ArrayFile, info: ShardInfo | None) -> None:
    """That the file is the one in the manifest, and claims no more than a shard holds: it may be sparse."""
    images, keys = file.arrays["images"].length, file.arrays["keys"].length
    found = ShardInfo(file.path.name, images, file.arrays["patches"].length, file.size, file.checksum)
    if info is not None and info != found:
        raise FormatError(f"{file.path} is not the shard that the manifest lists: it is {found}, not {info}")
    if images > MAX_IMAGES or keys > images * (MAX_KEY + 1):
        raise FormatError(
            f"{file.path} is damaged: {images} images and {keys} bytes of keys are more than a shard holds"
        )


def _check_offsets(path: Path, offsets: NDArray[Any], divided: str, most: int) -> None:
    """That offsets, the end of the array that they divide among them, rise from 0, by `most` at most."""
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"{path} is damaged: the offsets of its images do not divide its array '{divided}'")
    if (offsets[1:] - offsets[:-1] > most).any():
        raise FormatError(f"{path} is damaged: one of its images has more than {most} of its array '{divided}'")
