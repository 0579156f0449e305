"""Array files: named one-dimensional arrays in one HDF5 file, each lying in one piece, with its SHA-256.

Both kinds of files of a cache, shards and the key index, are such files. They are written at one stroke, so that a file
with its final name is complete, and read by offset, so that an image costs a few system calls and no HDF5 traffic.
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

Schema = Mapping[str, tuple[np.dtype[Any], ...]]  # the types that each array may have

_BLOCK = 1 << 20  # bytes read at a time where a whole array passes by
_MAX_ATTRIBUTE = 1024  # bytes


class Array(NamedTuple):
    """Where an array lies in its file."""

    offset: int
    dtype: np.dtype[Any]
    length: int
    checksum: str

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


class ArrayFile:
    """An array file whose layout has been checked: every array lies inside the file and has an allowed type.

    Attributes:
        path: of the file.
        arrays: where each lies.
        size: of the file, in bytes.
    """

    def __init__(self, path: Path, arrays: Mapping[str, Array], descriptor: "Descriptor") -> None:
        self.path = path
        self.arrays = arrays
        self.size = descriptor.size
        self._descriptor: Descriptor | None = descriptor

    @property
    def checksum(self) -> str:
        """One SHA-256 over those of all arrays."""
        return combined_checksum({name: array.checksum for name, array in self.arrays.items()})

    def release(self) -> None:
        """Gives the file's descriptor back; the next read takes a new one."""
        self._descriptor = None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Elements [start, stop) of an array, read at one stroke."""
        array = self.arrays[name]
        stop = array.length if stop is None else stop
        size = array.dtype.itemsize
        return np.frombuffer(self.read_bytes(array.offset + start * size, (stop - start) * size), array.dtype)

    def read_checked(self, name: str) -> NDArray[Any]:
        """A whole array, whose checksum must be right; what is wrong costs no memory.

        To be asked only for arrays of a length that is known to be sensible: a sparse file may claim any.
        """
        self._check(name)
        return self.read(name)

    def verify(self) -> None:
        """Reads every array, block by block.

        Raises:
            FormatError: naming the first array whose checksum is wrong.
        """
        for name in self.arrays:
            self._check(name)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Bytes [offset, offset + count) of the file."""
        try:
            # Kept in a local, for another thread may release the file meanwhile.
            descriptor = self._descriptor = self._descriptor or Descriptor(self.path)
            data = os.pread(descriptor.number, count, offset)
            while len(data) < count:  # cut short after it was opened, or a file system that gives little at a time
                more = os.pread(descriptor.number, count - len(data), offset + len(data))
                if not more:
                    raise FormatError(f"{self.path} is truncated: it ends before byte {offset + count}")
                data += more
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}") from error
        return data

    def _check(self, name: str) -> None:
        array, digest = self.arrays[name], hashlib.sha256()
        for start in range(0, array.nbytes, _BLOCK):
            digest.update(self.read_bytes(array.offset + start, min(_BLOCK, array.nbytes - start)))
        if digest.hexdigest() != array.checksum:
            raise FormatError(f"{self.path} is damaged: wrong checksum of its array '{name}'")


class Descriptor:
    """A file descriptor for reading, closed with its last reference: other threads may still be reading through it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.number).st_size

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def pack(kind: str, arrays: Mapping[str, NDArray[Any]]) -> tuple[bytes, str]:
    """The bytes of an array file, and its checksum. Built in memory: HDF5 on a full disk does not fail cleanly."""
    checksums = {name: hashlib.sha256(np.ascontiguousarray(values).data).hexdigest() for name, values in arrays.items()}
    # From version 1.10 on, HDF5 puts checksums on its own structures.
    with h5py.File(f"{kind}.h5", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(f"proposal_cache.{kind}")
        file.attrs["version"] = FORMAT_VERSION
        for name, values in arrays.items():
            dataset = file.create_dataset(name, data=np.ascontiguousarray(values))
            dataset.attrs["sha256"] = np.bytes_(checksums[name])
        file.flush()
        return file.id.get_file_image(), combined_checksum(checksums)


def combined_checksum(checksums: Mapping[str, str]) -> str:
    """One SHA-256 over those of all arrays."""
    return hashlib.sha256("".join(f"{name}:{checksums[name]}\n" for name in sorted(checksums)).encode()).hexdigest()


def open_arrays(path: Path, kind: str, schema: Schema) -> ArrayFile:
    """Opens an array file and reads its layout, nothing else.

    Raises:
        StorageError: where the file is missing or may not be read.
        FormatError: where it is not a complete file of this kind, version and schema, laid out as `pack` does.
    """
    try:
        descriptor = Descriptor(path)
        with h5py.File(path, "r", locking=False) as file:
            root = h5py.h5g.open(file.id, b"/")
            _check_head(path, root, kind)
            arrays = {name: _layout(path, root, name, schema[name]) for name in schema}
    except (StorageError, FormatError):
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
    except Exception as error:  # HDF5 meets damage in many ways: OSError, RuntimeError, KeyError, ValueError, ...
        raise FormatError(f"{path} is truncated, damaged, or no HDF5 file: {error}") from error
    for name, array in arrays.items():
        if array.offset + array.nbytes > descriptor.size:
            raise FormatError(f"{path} is truncated or damaged: its array '{name}' reaches beyond its end")
    return ArrayFile(path, arrays, descriptor)


def _check_head(path: Path, file: h5py.h5g.GroupID, kind: str) -> None:
    found = _attribute(path, file, "format")
    if found != f"proposal_cache.{kind}".encode():
        raise FormatError(f"{path} is no {kind} of a patch cache: its format is {found!r}")
    version = _attribute(path, file, "version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format version {version}, this program reads version {FORMAT_VERSION}: "
            "make the cache again with the command that made it, in another directory"
        )


def _layout(path: Path, file: h5py.h5g.GroupID, name: str, dtypes: tuple[np.dtype[Any], ...]) -> Array:
    """Where an array lies. By HDF5's own interface, for h5py's takes five times as long."""
    if not file.links.exists(name.encode()) or file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise FormatError(f"{path} is damaged: it has no array '{name}'")  # other links might lead into other files
    dataset = h5py.h5d.open(file, name.encode())
    storage = dataset.get_create_plist()
    if storage.get_layout() != h5py.h5d.CONTIGUOUS or storage.get_external_count() or storage.get_nfilters():
        raise FormatError(f"{path} is damaged: its array '{name}' does not lie in one piece")
    dtype, shape = dataset.dtype, dataset.shape
    if dtype not in dtypes or len(shape) != 1:
        raise FormatError(f"{path} is damaged: its array '{name}' is {dtype} of shape {shape}")
    dtype = dtypes[dtypes.index(dtype)]  # the same object for all files, which stays in the processor's cache
    offset = dataset.get_offset()
    array = Array(offset or 0, dtype, shape[0], _attribute(path, dataset, "sha256").decode("ascii"))
    if offset is None and array.nbytes:
        raise FormatError(f"{path} is damaged: its array '{name}' was never written")
    return array


def _attribute(path: Path, item: h5py.h5g.GroupID, name: str) -> Any:
    """A small attribute: one number or string of fixed length."""
    if not h5py.h5a.exists(item, name.encode()):
        raise FormatError(f"{path} is no file of a patch cache: it has no attribute '{name}' where it should")
    attribute = h5py.h5a.open(item, name.encode())
    if attribute.shape != () or attribute.dtype.kind not in "iuS" or attribute.get_storage_size() > _MAX_ATTRIBUTE:
        raise FormatError(f"{path} is damaged: its attribute '{name}' is neither a number nor a short string")
    value = np.empty((), attribute.dtype)
    attribute.read(value)
    return value[()]
