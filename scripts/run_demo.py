#!/usr/bin/env python
"""Run the whole pipeline at small scale on a CPU: patches, training, evaluation, oracle, and a page of pictures.

    python scripts/run_demo.py --output output/demo

No network is needed. A repeated command skips finished stages and resumes training.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import run_demo

    run_demo.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder (default %(default)s)")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="scenes to train on (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="scenes to evaluate on (default %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
