#!/usr/bin/env python
"""How long an image takes to load for training, and what decoding and resizing its masks would have taken.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --dataset coco_2017_train_panoptic --patches-cache coco/sam_patches/train2017

By default on photographs of scikit-image at COCO's 480 x 640, with 150 patches each and a panoptic ground truth of
about 20 segments; or on a registered dataset. The augmentation is that of the paper's COCO recipe. Prints, from one
run, taking turns,

1. what the parts of the mapper take, beside decoding every mask and carrying it through the same augmentation, as
   Detectron2's own mapper does with masks. A dense data path needs more than that: it has overlaps to measure too;
2. images per second through the real data loader, beside what the model consumes on an H100-class GPU. That is an
   estimate: Mask R-CNN R50-FPN, whose network takes about as many operations, trains on 7.7 images a second on one
   V100 (Detectron2's model zoo, 0.261 s for 16 images on eight); an H100 is taken to be four times as fast.
"""

import argparse

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import benchmark_data

    benchmark_data.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--dataset", metavar="NAME", help="registered (default: one made for this run)")
    parser.add_argument("--patches-cache", help="its patches, as in DATASETS.PATCHES_TRAIN")
    parser.add_argument("--patches", type=int, default=150, help="an image, in the dataset made for this run")
    parser.add_argument("--images", type=int, default=60, help="to load (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    return parser.parse_args()


if __name__ == "__main__":
    main()
