"""Journals of images that failed, one per rank, until `finalize` copies them to the manifest."""

import json
import re
from pathlib import Path

from proposal_cache.errors import StorageError
from proposal_cache.store.durable import append_durably, list_directory

JOURNAL_NAME = re.compile(r"failures-r(\d{3,6})\.jsonl")


def record_failure(cache: Path, rank: int, key: str, reason: str) -> None:
    """Append a failed image to the rank's journal."""
    path = cache / f"failures-r{rank:03d}.jsonl"
    # The leading newline ends a line that a crash may have left incomplete.
    line = "\n" + json.dumps({"key": key, "reason": reason}) + "\n"
    append_durably(path, line.encode())


def read_failures(cache: Path) -> dict[str, str]:
    """Return the last reason per key from all journals; incomplete lines are skipped."""
    failures = {}
    for path in list_directory(cache):
        if not JOURNAL_NAME.fullmatch(path.name):
            continue
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        for line in lines:
            try:
                entry = json.loads(line)
                failures[str(entry["key"])] = str(entry["reason"])
            except (ValueError, TypeError, KeyError):
                continue
    return failures
