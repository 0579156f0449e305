"""What can go wrong with patches and their cache: every message names the file, the value and the way out."""


class CacheError(ValueError):
    """Base of all errors of this package."""


class MaskError(CacheError):
    """A run-length encoded mask that is no mask of its image: damaged, truncated, or of another image size."""


class FormatError(CacheError):
    """A file of a cache that is not what its format promises: damaged, truncated, of another version, or hostile."""


class MismatchError(CacheError):
    """A cache of another dataset, or made by another generator or with other parameters, than was asked for."""


class LockedError(CacheError):
    """Another process is writing to this cache."""


class StorageError(CacheError):
    """The disk (or the network mount) failed while reading or writing: full, gone, or not permitted."""


class MissingKeyError(CacheError, KeyError):
    """An image that the cache has no patches of."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""
