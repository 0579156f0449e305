"""Benchmarks of all parts, and their comparison with the kept run."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from samcp.benchmarks.report import Report, Table, find_falls, keep_tables, read_kept
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
    """Measure, print and write the tables; with --update, compare them with the kept ones and replace these."""
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
    if arguments.update:
        for warning in find_falls(report.tables.values(), read_kept(arguments.update)):
            print(f"warning: {warning}")
        keep_tables(arguments.update, measured)
        print(f"{arguments.update} has the figures of this run")


def _benchmark(name: str) -> ModuleType:
    """Import a benchmark, whose libraries the others may not need."""
    return import_module(f"samcp.benchmarks.{name}")
