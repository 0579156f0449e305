#!/usr/bin/env python
"""Evaluate a checkpoint on several datasets, each by its own words, in one table beside the paper's figures (Table 1).

    python scripts/evaluate_open_vocabulary.py --weights output/open_vocabulary/coco/model_final.pth \\
        --configs configs/open_vocabulary/coco_to_ade20k.yaml configs/open_vocabulary/coco_to_cityscapes.yaml \\
        --output output/table1

Each config names a dataset (or several), its patches and how images are resized for it. With --kappa 0 0.3 0.4 0.5 0.8
1 every dataset is gone through once for all of them (Table 8). OUTPUT/results.json is written after each dataset; run
again, the command goes on with those that are missing: what other weights, configs or options gave is kept, and not
taken for it. OUTPUT/table.md is the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from samcp.command_line import add_register_option, command_parser


def main() -> None:
    arguments = parse_arguments()

    from samcp.commands import evaluate_open_vocabulary

    evaluate_open_vocabulary.main(arguments)


def _kappa(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line, or those given."""
    parser = command_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a checkpoint or model file")
    parser.add_argument("--configs", type=Path, nargs="+", required=True, metavar="YAML", help="one for each dataset")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="of results.json and table.md")
    parser.add_argument("--kappa", type=_kappa, nargs="+", default=[], metavar="X", help="instead of the configs' one")
    add_register_option(parser)
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="of this machine (default %(default)s)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, as for train_net.py; last"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
