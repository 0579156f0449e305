#!/usr/bin/env python
"""Time the loading of training images, compared with decoding and augmenting dense masks.

    python scripts/benchmark_data.py
    python scripts/benchmark_data.py --dataset coco_2017_train_panoptic --patches-cache coco/sam_patches/train2017

The default data are photographs of scikit-image at 480 x 640 with 150 patches and a panoptic ground truth of about 20
segments each; --dataset selects a registered dataset. The augmentation is that of the paper's COCO recipe. Prints

1. milliseconds per image of each part of the mapper, and of decoding and augmenting all masks as Detectron2's mapper
   does, measured alternately. A dense data path would also have to compute overlaps, which is not included;
2. images per second of the data loader, relative to the estimated training speed on an H100: Mask R-CNN R50-FPN, a
   network of about as many operations, trains on 7.7 images per second and V100 (Detectron2's model zoo: 0.261 s for 16
   images on 8 GPUs), and an H100 is assumed to be four times as fast.
"""

import argparse

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import benchmark_data

    benchmark_data.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--dataset", metavar="NAME", help="registered dataset (default: photographs of scikit-image)")
    parser.add_argument("--patches-cache", help="patch cache of --dataset, as in DATASETS.PATCHES_TRAIN")
    parser.add_argument(
        "--patches", type=int, default=150, help="patches per image of the default dataset (default %(default)s)"
    )
    parser.add_argument("--images", type=int, default=60, help="images to load (default %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="worker processes (default 0 2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
