"""Benchmarks of all parts, and their comparison with the kept run."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from proposal_cache.store.durable import write_durably
from samcp.benchmarks.report import Report, Table, find_falls, format_tables, read_json, update_page
from samcp.errors import exit_with_message


def main(runs: Mapping[str, argparse.Namespace], arguments: argparse.Namespace) -> None:
    """Run benchmarks.

    Args:
        runs: the arguments of each benchmark, by name.
        arguments: of the command line.
    """
    with exit_with_message():
        if arguments.measure:
            _benchmark(arguments.command).print_measurement(arguments)
            return
        run(runs, arguments)


def run(runs: Mapping[str, argparse.Namespace], arguments: argparse.Namespace) -> None:
    """Measure, print and write the tables; with --update, compare with the kept run and replace it."""
    name = "quick" if arguments.command == "all" and arguments.quick else arguments.command
    report = Report(arguments.report, name)
    measured: dict[str, list[Table]] = {}
    for benchmark, options in runs.items():
        measured[benchmark] = []
        for table in _benchmark(benchmark).tables(options):
            print(f"\n{table.markdown()}", flush=True)
            report.add(table)
            measured[benchmark].append(table)
    print(f"\nWritten to {report.markdown} and {report.json}")
    if arguments.command != "all" or not arguments.update:
        return
    kept = arguments.update / "benchmarks.json"
    before = [Table(**entry) for entry in read_json(kept)["tables"]] if kept.exists() else []
    for warning in find_falls(report.tables.values(), before):
        print(f"warning: {warning}")
    page = arguments.update / "benchmarks.md"
    for section, tables in measured.items():
        update_page(page, section, format_tables(tables))
    write_durably(kept, report.json.read_bytes())
    print(f"{page} and {kept} have the figures of this run")


def _benchmark(name: str) -> ModuleType:
    """Import a benchmark, whose libraries the others may not need."""
    return import_module(f"samcp.benchmarks.{name}")
