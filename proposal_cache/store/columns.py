"""HDF5 files of named columns: one-dimensional, contiguous arrays, each with its SHA-256.

Shards and the key index are such files. Columns are read by file offset with `pread`, not through HDF5, so that loading
an image takes two system calls.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from proposal_cache.errors import FormatError, StorageError

FORMAT_VERSION = 2

Schema = Mapping[str, tuple[np.dtype[Any], ...]]  # allowed types of each column

_BLOCK = 1 << 20  # bytes read at a time when a whole column is checked
_MAX_ATTRIBUTE = 1024  # bytes


class Column(NamedTuple):
    """Position of a column in its file, in bytes, its element type, length and SHA-256."""

    offset: int
    dtype: np.dtype[Any]
    length: int
    checksum: str

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


class ColumnFile:
    """Open column file with a validated layout: every column has an allowed type and lies inside the file.

    Its `size` is in bytes; its `checksum` is a SHA-256 over the checksums of all columns.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column], descriptor: "Descriptor") -> None:
        self.path = path
        self.columns = columns
        self.size = descriptor.size
        self.checksum = combined_checksum({name: column.checksum for name, column in columns.items()})
        self._descriptor: Descriptor | None = descriptor

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._descriptor = None

    def read_checked(self, name: str) -> NDArray[Any]:
        """Read a whole column after `check`. Check its length before: a sparse file may claim any."""
        self.check(name)
        column = self.columns[name]
        return np.frombuffer(self.read_bytes(column.offset, column.nbytes), column.dtype)

    def check(self, name: str) -> None:
        """Raise FormatError if a column's checksum is wrong; blockwise, before memory is allocated for it."""
        column, digest = self.columns[name], hashlib.sha256()
        for start in range(0, column.nbytes, _BLOCK):
            digest.update(self.read_bytes(column.offset + start, min(_BLOCK, column.nbytes - start)))
        if digest.hexdigest() != column.checksum:
            raise FormatError(f"{self.path} is damaged: wrong checksum of column '{name}'")

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Read bytes [offset, offset + count); raise FormatError if the file ends before, StorageError if it fails."""
        try:
            # A local reference, because another thread may call `close` in the meantime.
            descriptor = self._descriptor = self._descriptor or Descriptor(self.path)
            data = b""
            while len(data) < count:  # some file systems read less
                more = os.pread(descriptor.number, count - len(data), offset + len(data))
                if not more:
                    raise FormatError(f"{self.path} is truncated: it ends before byte {offset + count}")
                data += more
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}") from error
        return data


class Descriptor:
    """File descriptor for reading, closed with its last reference, because other threads may still be using it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def pack(kind: str, columns: Mapping[str, NDArray[Any]]) -> tuple[bytes, str]:
    """Return the bytes of a column file and its checksum.

    The file is built in memory, because HDF5 does not fail cleanly on a full disk.
    """
    checksums = {
        name: hashlib.sha256(np.ascontiguousarray(values).data).hexdigest() for name, values in columns.items()
    }
    # Since file format 1.10, HDF5 writes checksums of its own metadata.
    with h5py.File(f"{kind}.h5", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(f"proposal_cache.{kind}")
        file.attrs["version"] = FORMAT_VERSION
        for name, values in columns.items():
            dataset = file.create_dataset(name, data=np.ascontiguousarray(values))
            dataset.attrs["sha256"] = np.bytes_(checksums[name])
        file.flush()
        return file.id.get_file_image(), combined_checksum(checksums)


def combined_checksum(checksums: Mapping[str, str]) -> str:
    """Return one SHA-256 over the checksums of all columns."""
    return hashlib.sha256("".join(f"{name}:{checksums[name]}\n" for name in sorted(checksums)).encode()).hexdigest()


def open_columns(path: Path, kind: str, schema: Schema) -> ColumnFile:
    """Open a column file and read its layout.

    Raises:
        StorageError: if the file is missing or cannot be read.
        FormatError: if it is not a complete file of this kind, version and schema, as written by `pack`.
    """
    try:
        descriptor = Descriptor(path)
        with h5py.File(path, "r", locking=False) as file:
            root = h5py.h5g.open(file.id, b"/")
            found, version = _attribute(path, root, "format"), _attribute(path, root, "version")
            if found != f"proposal_cache.{kind}".encode():
                raise FormatError(f"{path} is not a {kind} of a patch cache: its format is {found!r}")
            check_version(path, version)
            columns = {name: _layout(path, root, name, schema[name]) for name in schema}
    except FormatError:
        raise
    except Exception as error:
        # HDF5 reports damage as OSError without a number, RuntimeError, KeyError, ValueError, ...
        if isinstance(error, OSError) and error.errno:
            raise StorageError(f"{path} cannot be opened: {os.strerror(error.errno)}") from error
        raise FormatError(f"{path} is truncated, damaged, or not an HDF5 file: {error}") from error
    for name, column in columns.items():
        if column.offset + column.nbytes > descriptor.size:
            raise FormatError(f"{path} is truncated or damaged: column '{name}' extends beyond its end")
    return ColumnFile(path, columns, descriptor)


def check_version(path: Path, version: Any) -> None:
    """Raise FormatError unless this program reads a file's format version."""
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {version}, this program reads version {FORMAT_VERSION}: "
            "generate the cache again in another directory"
        )


def _layout(path: Path, file: h5py.h5g.GroupID, name: str, dtypes: tuple[np.dtype[Any], ...]) -> Column:
    """Return the position of a column. HDF5's low-level interface is five times as fast as h5py's."""
    if not file.links.exists(name.encode()) or file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise FormatError(f"{path} is damaged: it has no column '{name}'")  # other links may point to other files
    dataset = h5py.h5d.open(file, name.encode())
    storage = dataset.get_create_plist()
    if storage.get_layout() != h5py.h5d.CONTIGUOUS or storage.get_external_count() or storage.get_nfilters():
        raise FormatError(f"{path} is damaged: column '{name}' is not contiguous")
    dtype, shape = dataset.dtype, dataset.shape
    if dtype not in dtypes or len(shape) != 1:
        raise FormatError(f"{path} is damaged: column '{name}' is {dtype} of shape {shape}")
    dtype = dtypes[dtypes.index(dtype)]  # one object for all files, which stays in the CPU cache
    offset = dataset.get_offset()
    column = Column(offset or 0, dtype, shape[0], _attribute(path, dataset, "sha256").decode("ascii"))
    if offset is None and column.nbytes:
        raise FormatError(f"{path} is damaged: column '{name}' was never written")
    return column


def _attribute(path: Path, item: h5py.h5g.GroupID, name: str) -> Any:
    """Read an attribute, which must be a number or a short string of fixed length."""
    if not h5py.h5a.exists(item, name.encode()):
        raise FormatError(f"{path} is not a file of a patch cache: attribute '{name}' is missing")
    attribute = h5py.h5a.open(item, name.encode())
    if attribute.shape != () or attribute.dtype.kind not in "iuS" or attribute.get_storage_size() > _MAX_ATTRIBUTE:
        raise FormatError(f"{path} is damaged: attribute '{name}' is neither a number nor a short string")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return value[()]
