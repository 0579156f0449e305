#!/usr/bin/env python
"""Train the generator `contours`: patches of photographs without SAM.

    python scripts/train_contours.py --output output/contours

Trains on the training images of BSDS500, CCP and CamVid under DETECTRON2_DATASETS (docs/datasets.md), in three steps:
the network of boundaries and embeddings, about 50 minutes on one CPU core; the cost of merging two regions, about 10
minutes; validation. Writes contours.safetensors, log.jsonl with the losses, and validation.json. Repeat the command to
continue after an interruption.

Validation is Table 9 of the datasets named by --validate, and the covering of BSDS500's validation images.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import train_contours

    train_contours.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/contours"), help="folder (default %(default)s)")
    parser.add_argument(
        "--iterations", type=count, default=4000, metavar="N", help="of the network (default %(default)s)"
    )
    parser.add_argument(
        "--batch", type=count, default=4, metavar="N", help="images per iteration (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="loading processes (default %(default)s)")
    parser.add_argument(
        "--pair-images",
        type=count,
        default=400,
        metavar="N",
        help="images for the cost of merges (default %(default)s)",
    )
    parser.add_argument(
        "--validate",
        nargs="*",
        default=["bsds500_val", "coco_2017_train"],
        metavar="DATASET",
        help="registered datasets (default: bsds500_val coco_2017_train, which is not used for training)",
    )
    parser.add_argument("--limit", type=count, metavar="N", help="validate on the first N images only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
