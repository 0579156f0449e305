#!/usr/bin/env python
"""Evaluate the patches of a cache against the ground truth of a dataset, without a model (Table 9).

    python scripts/evaluate_patches.py --dataset coco_2017_val --patches datasets/coco/sam_patches/val2017
    python scripts/evaluate_patches.py --dataset coco_2017_val_panoptic --patches datasets/coco/sam_patches/val2017 \\
        --workers 4 --output output/patches.json
    python scripts/evaluate_patches.py --register beach/beach.yaml --dataset beach_val --patches beach/patches/val \\
        --limit 100 --plot output/recall.png

The first command gives the paper's table on COCO's instances. Objects are all segments except crowds: instances, and
one segment per stuff class and image (in label maps, all classes are stuff). The best IoU of an object is the highest
IoU with any patch. Each row has the mean best IoU, the same over objects with a best IoU above 0.5, and the missing
rates MR x, the share of objects with a best IoU of at most x. The row "merged" replaces the best patch by the union of
all patches that belong to the object by the rule of training (docs/method.md, 6), which is the result of a perfect
model; its IoU is 0 if no patch belongs to the object. Sizes are COCO's: small is below 32 x 32 pixels, medium below
96 x 96. The json also has the metrics of every class, in ascending order of mean IoU. The plot has the share of objects
with at least an IoU, over the IoU.
"""

import argparse
from pathlib import Path

from samcp.command_line import add_dataset_options, add_strict_option, command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import evaluate_patches

    evaluate_patches.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_dataset_options(parser)
    add_strict_option(parser)
    parser.add_argument("--limit", type=count, metavar="N", help="evaluate the first N images only (default: all)")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="json file for all metrics, also per class")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the recall over the IoU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
