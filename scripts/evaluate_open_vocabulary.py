#!/usr/bin/env python
"""Evaluate a checkpoint on several datasets with their own vocabularies, and compare with the paper (Table 1).

    python scripts/evaluate_open_vocabulary.py --weights output/open_vocabulary/coco/model_final.pth \\
        --configs configs/open_vocabulary/coco_to_ade20k.yaml configs/open_vocabulary/coco_to_cityscapes.yaml \\
        --output output/table1

Each config names one or more datasets, their patches and the image size. With several values of --kappa, each dataset
is processed once for all of them (Table 8). OUTPUT/table.md is the table. OUTPUT/results.json is updated after each
dataset, and a repeated command evaluates only missing results. It also keeps results of other weights, configs and
options.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from samcp.command_line import add_register_option, add_strict_option, command_parser, fraction


def main() -> None:
    arguments = parse_arguments()

    from samcp.commands import evaluate_open_vocabulary

    evaluate_open_vocabulary.main(arguments)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the given arguments, or those of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a checkpoint or model file")
    parser.add_argument(
        "--configs", type=Path, nargs="+", required=True, metavar="YAML", help="configs of the datasets"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for results.json and table.md"
    )
    parser.add_argument(
        "--kappa",
        type=fraction,
        nargs="+",
        default=[],
        metavar="X",
        help="weights of CLIP's scores (default: those of the config)",
    )
    add_register_option(parser)
    add_strict_option(parser)
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs of this machine (default %(default)s)"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, as for train_net.py; last"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
