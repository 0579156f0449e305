"""The command line that all conversions share."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from samcp.errors import DataError


def run(prepare: Callable[..., Mapping[str, str]], *, folder: str, description: str | None) -> None:
    """Convert what --folder holds with --workers processes, and print what was found in each split.

    Ends the process with one message where the user can put something right.

    Args:
        prepare: (folder, workers=) -> split -> what was found.
        folder: the default, under DETECTRON2_DATASETS.
        description: for --help.
    """
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(root) / folder,
        help="of the release; default, %(default)s, which is where the datasets' names point to",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)")
    arguments = parser.parse_args()
    try:
        found = prepare(arguments.folder, workers=max(arguments.workers, 1))
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
    for split, what in found.items():
        print(f"{split}: {what}")
