#!/usr/bin/env python
"""Repeat tables of the paper on drawn scenes with small models, and write docs/miniature.md.

    python scripts/reproduce.py table3 table8 --quick
    python scripts/reproduce.py all --seeds 3

Scenes and patches are made first. A repeated command continues: finished trainings and measurements are skipped, and
rows that several tables share are trained once. Delete the folder after a change of the code or of weights. Jobs that
fail are named at the end with their logs, and tried again by the next call. No network is needed.
"""

import argparse
import os
from pathlib import Path

from samcp.command_line import command_parser, count


def main() -> None:
    arguments = _parse_arguments()
    # Before the datasets are registered, which the imports below do.
    os.environ["DETECTRON2_DATASETS"] = str(arguments.output.resolve() / "data")

    from samcp.commands import reproduce

    reproduce.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="table1 .. table12, figure13, or all")
    text = "half of the training iterations, and one seed unless --seeds is given"
    parser.add_argument("--quick", action="store_true", help=text)
    parser.add_argument("--seeds", type=count, metavar="N", help="trainings per row (default 3)")
    text = "folder of data, trainings and results (default %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("output/miniature"), metavar="DIR", help=text)
    text = "processes, with one thread each (default: CPU cores)"
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, metavar="N", help=text)
    text = "(default docs/miniature.md; with --quick, quick.md in the output folder)"
    parser.add_argument("--document", type=Path, metavar="FILE", help=text)
    return parser.parse_args()


if __name__ == "__main__":
    main()
