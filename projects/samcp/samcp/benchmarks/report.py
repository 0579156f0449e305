"""Tables of measurements, their comparison with a kept run, and their place in a page of the documentation."""

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from proposal_cache.store.durable import write_durably
from samcp.errors import DataError, UsageError

FALL = 0.8  # a ratio below this share of the kept one is reported
_KEPT = "benchmarks.json"


@dataclass(frozen=True)
class Table:
    """Measurements of one kind.

    Attributes:
        title: unique in a report.
        columns: headers; the first one is that of the rows' names.
        rows: text of the cells.
        ratios: by name, how many times a peer needs the time or memory of ours; more is better.
        note: printed below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    ratios: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def markdown(self) -> str:
        alignment = ["left", *["right"] * (len(self.columns) - 1)]
        table = tabulate(self.rows, self.columns, tablefmt="github", disable_numparse=True, colalign=alignment)
        return "\n\n".join(part for part in (f"**{self.title}**", table, self.note) if part)


class Report:
    """Tables of one run, written to a json and a Markdown file whenever one is added.

    Args:
        folder: of the two files.
        name: of the files, without suffix.
        resume: continue the report that is there, instead of replacing it.
    """

    def __init__(self, folder: Path, name: str, *, resume: bool = False) -> None:
        self.json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        folder.mkdir(parents=True, exist_ok=True)
        self.tables: dict[str, Table] = {}
        if resume and self.json.exists():
            self.tables = {entry["title"]: Table(**entry) for entry in read_json(self.json)["tables"]}

    def clear(self) -> None:
        """Delete the files of an earlier run."""
        self.json.unlink(missing_ok=True)
        self.markdown.unlink(missing_ok=True)

    def add(self, table: Table) -> None:
        """Add a table, or replace that of the same title."""
        self.tables[table.title] = table
        write_durably(self.json, _to_json(_describe(self.tables.values())))
        write_durably(self.markdown, format_tables(self.tables.values()).encode())


def format_tables(tables: Iterable[Table]) -> str:
    """Return the machine and the tables as Markdown."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = f"{machine['date']}: {machine['machine']}; {versions}."
    return "\n\n".join([head, *(table.markdown() for table in tables)]) + "\n"


def describe_machine() -> dict[str, Any]:
    """Return the date, the machine and the versions that figures depend on."""
    import torch  # not above: processes that measure their own memory import this module

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()} ({torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB)"
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__, "NumPy": np.__version__}
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine, "versions": versions}


def find_falls(tables: Iterable[Table], kept: Iterable[Table]) -> list[str]:
    """Return a warning for each ratio of `tables` that is less than FALL times that of the kept run."""
    before = {(table.title, name): ratio for table in kept for name, ratio in table.ratios.items()}
    found = []
    for table in tables:
        for name, ratio in table.ratios.items():
            old = before.get((table.title, name))
            if old is not None and ratio < FALL * old:
                found.append(f"{table.title}: {name} fell from {old:.2f} to {ratio:.2f} times ({ratio / old - 1:+.0%})")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a report's json.

    Raises DataError if it is damaged.
    """
    with _damage(path):
        content = json.loads(path.read_text())
        return {**content, "tables": list(content["tables"])}


def read_kept(folder: Path) -> list[Table]:
    """Return the tables in benchmarks.json, by all benchmarks.

    Raises DataError if it is damaged.
    """
    path = folder / _KEPT
    if not path.exists():
        return []
    with _damage(path):
        return [Table(**table) for part in json.loads(path.read_text()).values() for table in part["tables"]]


def keep_tables(folder: Path, measured: Mapping[str, Sequence[Table]]) -> None:
    """Replace the tables of some benchmarks in benchmarks.md and benchmarks.json; each benchmark has its own date."""
    path = folder / _KEPT
    kept = json.loads(path.read_text()) if path.exists() else {}
    for benchmark, tables in measured.items():
        update_page(folder / "benchmarks.md", benchmark, format_tables(tables))
        kept[benchmark] = _describe(tables)
    write_durably(path, _to_json(kept))


def update_page(page: Path, section: str, text: str) -> None:
    """Replace the text of a page between the markers of a section.

    Raises UsageError if the page has no such markers.
    """
    begin, end = f"<!-- make bench: {section} -->", "<!-- end of make bench -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    content = page.read_text()
    if not pattern.search(content):
        raise UsageError(f"{page} has no lines {begin!r} and {end!r}, between which the figures are written")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", content))


def _describe(tables: Iterable[Table]) -> dict[str, Any]:
    return {**describe_machine(), "tables": [asdict(table) for table in tables]}


def _to_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise DataError for what reading a damaged report raises."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a report of measurements ({error}); delete it") from error
