"""Exceptions of this package; each message names the file, the value and, where there is one, the remedy."""

from typing import Any

from PIL import UnidentifiedImageError


class CacheError(ValueError):
    """Base class of all errors of this package."""


class MaskError(CacheError):
    """Run-length encoded mask is damaged or does not match the image size."""


class FormatError(CacheError):
    """Cache file is damaged, truncated or of an unsupported version."""


class MismatchError(CacheError):
    """Cache was made from another dataset, generator or parameters than requested."""


class LockedError(CacheError):
    """Another process is writing to the cache."""


class StorageError(CacheError):
    """Reading or writing failed: disk full, file missing, or permission denied."""


class MissingKeyError(CacheError, KeyError):
    """Image is not in the cache."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


def reason(error: Exception) -> str:
    """Return the message of an exception of a file system or decoder in one line, without the name of the file.

    >>> reason(FileNotFoundError(2, "No such file or directory", "photos/a.jpg"))
    'No such file or directory'
    """
    if isinstance(error, UnidentifiedImageError):
        return "its format is unknown"
    if isinstance(error, FileNotFoundError) and error.strerror is None:  # fsspec's, whose message is the URL
        return reason(error.__cause__) if isinstance(error.__cause__, Exception) else "it does not exist"
    return " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__


def abbreviate(value: Any) -> str:
    """Return the repr of a value for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
