#!/usr/bin/env python
"""Segment your own images with a trained model, by the words you name.

    python scripts/generate_sam_patches.py --images photos --checkpoint sam_vit_h_4b8939.pth --output patches
    python scripts/segment_images.py --weights model.safetensors --images photos --patches patches \\
        --vocabulary "kite, sea~, person: man | woman" --output result

A ~ marks stuff, which has no instances; words behind a colon are synonyms. Words other than those of the training need
a model with CLIP's text encoder (MODEL.SAMCP.TEXT.ENCODER clip). In the output there is, for each image, a picture,
result/KEY.jpg, and a PNG of segment ids, result/panoptic/KEY.png, which result/panoptic.json describes as COCO does; of
a model without instances the PNG is a map of classes, result/semantic/KEY.png, 255 where there is none (of more than
255 classes 16 bits, and 65535).
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import segment_images

    segment_images.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a checkpoint or model file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder, with all folders in it")
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="the cache of their patches")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--vocabulary",
        metavar="WORDS",
        help="classes, between commas; or a file of them, one a line; or coco, ade20k, cityscapes, cod10k, pascal_part "
        "(default: the classes of the training)",
    )
    parser.add_argument("--clip", default="", metavar="FILE", help="the model's CLIP, if not where it was at training")
    parser.add_argument("--device", default="", help="where to run the model (default: where it was trained, or cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
