"""Conversion of a dataset's release by a command, after its arguments are parsed."""

import argparse
from collections.abc import Callable, Mapping

from samcp.errors import exit_with_message


def run(prepare: Callable[..., Mapping[str, str]], arguments: argparse.Namespace) -> None:
    """Convert --folder with --workers processes, and print a summary of each split.

    Exits with one message on an error that the user can fix.

    Args:
        prepare: (folder, workers=) -> summary of each split.
        arguments: of :func:`samcp.command_line.conversion_parser`.
    """
    with exit_with_message(interrupted="interrupted; repeat the command to continue"):
        found = prepare(arguments.folder, workers=arguments.workers)
    for split, summary in found.items():
        print(f"{split}: {summary}")
