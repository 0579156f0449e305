"""Images that could not be done: each rank's journal, until `finalize` puts them into the manifest."""

import json
import re
from pathlib import Path

from proposal_cache.errors import StorageError
from proposal_cache.store.durable import append_durably, list_directory

JOURNAL_NAME = re.compile(r"failures-r(\d{3,6})\.jsonl")


def record_failure(cache: Path, rank: int, key: str, reason: str) -> None:
    """Appends to the rank's journal, durably."""
    path = cache / f"failures-r{rank:03d}.jsonl"
    # The newline in front ends a line that a crash may have left half written.
    line = "\n" + json.dumps({"key": key, "reason": reason}) + "\n"
    append_durably(path, line.encode())


def read_failures(cache: Path) -> dict[str, str]:
    """The last reason for each key in all journals; half-written lines are passed over."""
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
