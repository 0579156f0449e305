"""One shard: gathered in memory and written at one stroke; read image by image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proposal_cache._runs import MAX_PIXELS
from proposal_cache.errors import CacheError, FormatError
from proposal_cache.patches import Patches
from proposal_cache.store.columns import ColumnFile, open_columns, pack, write_durably
from proposal_cache.store.format import SHARD_SCHEMA, pack_keys, pack_masks, unpack_keys, unpack_masks
from proposal_cache.store.manifest import ShardInfo


class ShardBuffer:
    """Images on their way into a shard, their masks compressed already."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.nbytes = 0
        self._images: list[tuple[int, int]] = []
        self._frames: list[bytes] = []
        self._patches: list[dict[str, NDArray[Any]]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, key: str, patches: Patches) -> None:
        frame = pack_masks(patches.rles)
        box_type = "<u2" if max(patches.height, patches.width) < 1 << 16 else "<u4"
        columns = {
            "box": patches.boxes.astype(box_type),
            "area": patches.areas.astype("<u4"),
            "predicted_iou": patches.predicted_iou.astype("<f4"),
            "stability_score": patches.stability_score.astype("<f4"),
            "source": patches.source.astype("u1"),
            "rle_length": np.array([len(counts) for counts in patches.rles], "<u4"),
        }
        self.keys.append(key)
        self.nbytes += len(frame) + sum(column.nbytes for column in columns.values())
        self._images.append((patches.height, patches.width))
        self._frames.append(frame)
        self._patches.append(columns)

    def write(self, path: Path) -> None:
        """Writes the shard, complete or not at all; the buffer stays as it is."""
        heights, widths = zip(*self._images, strict=True)
        columns = {
            "keys": pack_keys(key.encode() for key in self.keys),
            "height": np.array(heights, "<u4"),
            "width": np.array(widths, "<u4"),
            "patch_offset": _offsets([len(columns["source"]) for columns in self._patches]),
            "rle_offset": _offsets([len(frame) for frame in self._frames]),
            "rles": np.frombuffer(b"".join(self._frames), np.uint8),
        }
        for name in self._patches[0]:
            columns[name] = np.concatenate([patches[name] for patches in self._patches])
        if columns["rle_length"].max(initial=0) < 1 << 16:
            columns["rle_length"] = columns["rle_length"].astype("<u2")
        write_durably(path, pack("shard", columns)[0])


@dataclass(frozen=True)
class Shard:
    """A shard laid open: where its images lie. The masks stay in the file.

    Attributes:
        file: the open file.
        heights, widths: of each image.
        patch_offset, rle_offset: as in the file.
    """

    file: ColumnFile
    heights: list[int]
    widths: list[int]
    patch_offset: list[int]
    rle_offset: list[int]

    @classmethod
    def open(cls, path: Path, info: ShardInfo | None = None) -> "Shard":
        """Opens a shard and reads what belongs to its images, nothing of their patches.

        Raises:
            FormatError: where it is damaged, truncated, hostile, or not the one that the manifest means by `info`.
            StorageError: where it cannot be read.
        """
        file = open_columns(path, "shard", SHARD_SCHEMA)
        if info is not None and info.checksum != file.checksum:
            raise FormatError(f"{path} is not the shard that the manifest lists: its checksum differs")
        _check_lengths(file, file.columns["height"].rows)
        names = ("height", "width", "patch_offset", "rle_offset")
        height, width, patch_offset, rle_offset = (file.read_checked(name) for name in names)
        _check_offsets(file, "patch_offset", patch_offset, file.columns["source"].rows)
        _check_offsets(file, "rle_offset", rle_offset, file.columns["rles"].rows)
        pixels = height.astype(np.int64) * width
        if not ((pixels > 0) & (pixels <= MAX_PIXELS)).all():
            raise FormatError(f"{path} is damaged: an image of it has an impossible size")
        return cls(file, height.tolist(), width.tolist(), patch_offset.tolist(), rle_offset.tolist())

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def info(self) -> ShardInfo:
        """The manifest's entry for it."""
        return ShardInfo(self.path.name, len(self), self.patch_offset[-1], self.file.size, self.file.checksum)

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
        """The patches of one image: a slice of each column, each read at one stroke."""
        read, start, stop = self.file.read, self.patch_offset[row], self.patch_offset[row + 1]
        frame = read("rles", self.rle_offset[row], self.rle_offset[row + 1])
        try:
            rles = unpack_masks(frame.data, read("rle_length", start, stop).tolist())
        except CacheError as error:
            raise FormatError(f"{self.path} is damaged: in its image {row}, {error}") from error
        return Patches(
            self.heights[row],
            self.widths[row],
            rles,
            read("box", start, stop),
            read("area", start, stop),
            read("predicted_iou", start, stop),
            read("stability_score", start, stop),
            read("source", start, stop),
        )


def _offsets(lengths: list[int]) -> NDArray[np.uint64]:
    return np.cumsum([0, *lengths], dtype="<u8")


def _check_lengths(file: ColumnFile, images: int) -> None:
    """Refuses columns whose lengths contradict each other."""
    patches = file.columns["source"].rows
    expected = {"width": images, "patch_offset": images + 1, "rle_offset": images + 1}
    expected |= dict.fromkeys(("box", "area", "predicted_iou", "stability_score", "rle_length"), patches)
    for name, length in expected.items():
        if file.columns[name].rows != length:
            raise FormatError(
                f"{file.path} is damaged: its column '{name}' has {file.columns[name].rows} rows, not {length}"
            )


def _check_offsets(file: ColumnFile, name: str, offsets: NDArray[np.uint64], rows: int) -> None:
    """Refuses offsets that do not rise from 0 to the number of rows they divide."""
    if offsets[0] != 0 or offsets[-1] != rows or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"{file.path} is damaged: its column '{name}' does not divide {rows} rows")
