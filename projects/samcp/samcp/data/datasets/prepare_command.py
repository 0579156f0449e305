"""Command line shared by the scripts that convert a release."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from samcp.errors import DataError


def run(prepare: Callable[..., Mapping[str, str]], *, folder: str, description: str | None) -> None:
    """Convert the release in --folder with --workers processes, and print a summary of each split.

    A DataError exits the process with its message.

    Args:
        prepare: the conversion: (folder, workers=) -> split -> summary.
        folder: default of --folder, under DETECTRON2_DATASETS.
        description: text of --help.
    """
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(root) / folder,
        help="folder of the release (default: %(default)s, where the registered datasets are read from)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        found = prepare(arguments.folder, workers=max(arguments.workers, 1))
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; repeat the command to continue")
    for split, summary in found.items():
        print(f"{split}: {summary}")
