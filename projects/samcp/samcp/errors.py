"""Errors that a user can fix; commands print them as one message without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from proposal_cache import CacheError


class UsageError(ValueError):
    """Config or combination of options cannot run; the message names the key."""


class CheckpointError(ValueError):
    """Checkpoint is missing, unreadable, or has another model or other classes; the message names the fix."""


class DataError(ValueError):
    """Dataset, image or annotation is missing, unreadable or inconsistent; the message names the file and the fix."""

    @classmethod
    def missing(cls, path: str, what: str) -> "DataError":
        """Return the error for a missing file of a dataset.

        Args:
            path: the file.
            what: what it holds, such as "image" or "ground truth".
        """
        return cls(
            f"{path}: the {what} is missing; put it there, or correct the folder in DETECTRON2_DATASETS or in the yaml "
            "of your own data"
        )


class DivergenceError(ValueError):
    """Loss is not finite; the message names the images of the batch."""


# All other exceptions are bugs and keep their traceback.
USER_ERRORS = (UsageError, CacheError, DataError, CheckpointError, DivergenceError)


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return what is wrong with a yaml file in one line, without its path."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())


@contextmanager
def exit_with_message(*errors: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """Exit with one message on an error that a user can fix, on one of the given types, and on Ctrl-C."""
    caught: tuple[type[Exception], ...] = (*USER_ERRORS, *errors)
    try:
        yield
    except caught as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(interrupted)


@contextmanager
def naming_config_key(key: str) -> Iterator[None]:
    """Prefix the message of a UsageError or CheckpointError raised in the block with a config key."""
    try:
        yield
    except (UsageError, CheckpointError) as error:
        raise type(error)(f"{key}: {error}") from error
