"""Repetition of the paper's tables on drawn scenes: data, trainings, measurements and the document."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from proposal_cache.store.lock import rank_lock
from samcp.data.datasets.miniature.prepare import make_miniature_dataset
from samcp.errors import exit_with_message
from samcp.miniature.reproduce.data import make_patches
from samcp.miniature.reproduce.document import Section, read_document, read_section, write_document
from samcp.miniature.reproduce.plan import Plan, Protocol
from samcp.miniature.reproduce.tables import Table, load_table, table_names
from samcp.miniature.reproduce.workers import Failure, run_jobs

_INTERRUPTED = "interrupted; the same command continues"


def main(arguments: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the processes of the jobs, too
    with exit_with_message(interrupted=_INTERRUPTED):
        names = table_names() if "all" in arguments.tables else list(dict.fromkeys(arguments.tables))
        protocol = Protocol(arguments.seeds or (1 if arguments.quick else 3), arguments.quick)
        document = arguments.document or (
            arguments.output / "quick.md" if arguments.quick else Path("docs/miniature.md")
        )
        tables = [load_table(name) for name in names]
        output = arguments.output.resolve()
        output.mkdir(parents=True, exist_ok=True)
        with rank_lock(output, 0):
            failures = run(tables, protocol, output, arguments.workers, document)
    if failures:
        sys.exit("\n".join(map(str, [*failures, f"{len(failures)} jobs failed; the same command tries them again"])))


def run(tables: Sequence[Table], protocol: Protocol, output: Path, workers: int, document: Path) -> list[Failure]:
    """Prepare data, run what has no results yet, and write the document; return the jobs that failed."""
    read_document(document)  # an error now, instead of after hours
    make_miniature_dataset(output / "data" / "miniature")
    make_patches(_patches(tables), workers)
    plan = Plan(tables, protocol)
    jobs = plan.jobs(output)
    trainings = sum(job.training is not None for job in jobs)
    print(f"{len(jobs)} jobs to do, {trainings} of them with a training; the others are finished", flush=True)
    failures = run_jobs(jobs, output, workers)
    sections = [read_section(table, plan, output, command_of(table, protocol)) for table in tables]
    write_document(document, sections, protocol)
    print_summary(sections)
    print(f"document: {document}")
    return failures


def command_of(table: Table, protocol: Protocol) -> str:
    """Return the command that makes one table."""
    quick = " --quick" if protocol.quick else ""
    return f"python scripts/reproduce.py {shlex.quote(table.name)}{quick} --seeds {protocol.seeds}"


def print_summary(sections: Sequence[Section]) -> None:
    """Print the verdict on each table's main claim."""
    for section in sections:
        print(f"{section.title}: main claim {section.main_verdict()}")


def _patches(tables: Sequence[Table]) -> list[tuple[str, str]]:
    """Return the datasets with the patches that the tables need, (dataset, patches)."""
    needed = []
    for table in tables:
        for row in table.rows:
            needed += [(dataset, row.test_patches) for dataset in table.datasets]
            if table.kinds != ("patches",):
                needed += [(dataset, row.patches) for dataset in row.train]
    return needed
