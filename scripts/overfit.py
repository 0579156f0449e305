#!/usr/bin/env python
"""Overfit a few images and compare with the oracle, to check matching, targets and losses.

    python scripts/overfit.py --dataset coco --images 8 --output output/overfit

Generates patches (generator "contours"), trains a small model on the images without augmentation, evaluates model and
oracle on the same images, prints model / oracle / fraction, and exits with 1 if a fraction is below --least.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import overfit

    overfit.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--dataset", default="coco", help="coco, camvid, or a registered name (default %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="number of images (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of image selection and training (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/overfit"), help="folder (default %(default)s)")
    parser.add_argument("--least", type=float, default=0.95, help="least share of the oracle (default %(default)s)")
    parser.add_argument("--config", default="miniature/overfit.yaml", help="(default %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args()


if __name__ == "__main__":
    main()
