#!/usr/bin/env python
"""Compare the patch cache with other storage formats: pickle files, json files, and an HDF5 group per image.

    python scripts/benchmark_store.py
    python scripts/benchmark_store.py --images 118287 --output SCRATCH

Writes synthetic patches in all formats. Prints bytes per image, load and write times, and the ratio of the cache to the
best other format, all measured in turns within one run; then compression methods for the masks, and the time and
memory of several processes that read the cache. The first command takes seconds; the second one has the size of COCO
and writes about 17 GB.

By default, as many images are read as were written, as in an epoch of training. The files of a format are read once
before each of its turns, so if they fit into memory, disk speed is not measured.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import benchmark_store

    benchmark_store.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=int, default=200, help="images in the cache (COCO has 118287)")
    parser.add_argument("--patches", type=int, default=100, help="patches per image")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--reads", type=int, help="images read at random from each format (default: as many as images)")
    parser.add_argument("--rounds", type=int, default=5, help="turns over which the reads are divided")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4], help="numbers of processes that read at once")
    parser.add_argument("--output", type=Path, help="existing folder for the files, which are removed at the end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
