#!/usr/bin/env python
"""How well the patches of a cache fit a dataset's ground truth (Table 9), before any model is trained on them.

    python scripts/evaluate_patches.py --dataset coco_2017_val --patches datasets/coco/sam_patches/val2017
    python scripts/evaluate_patches.py --dataset coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017 \\
        --workers 4 --output output/patches.json
    python scripts/evaluate_patches.py --register beach/beach.yaml --dataset beach_val --patches beach/patches/val \\
        --limit 100

The first is the paper's table, of COCO's instances. Objects are all segments that are no crowd: instances, and what an
image shows of a class of stuff; in label maps all classes are such. A row has the mean IoU of the objects with the
patch that fits each best; the same over those whose best IoU is above 0.5; and the missing rates MR x, the share of
objects that no patch fits with an IoU above x. The row "merged" below it has the same of the union of all patches that
belong to an object as training has it, those that lie inside it by more than 0.8 above all (docs/method.md, 6): what a
model without a mistake would make of them. It is 0 for an object that no patch belongs to, whatever its best patch.
Small, medium and large are COCO's: below 32 x 32 pixels, below 96 x 96, and the rest. The json has the figures of every
class beside, the class that patches fit worst first.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_register_option, command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import evaluate_patches

    evaluate_patches.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered in Detectron2, or by --register")
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="the cache of its patches")
    add_register_option(parser)
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N images (default: all)")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a json of all figures, of every class too")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
