#!/usr/bin/env python
"""Segment a folder of images with a trained model and a vocabulary of your choice.

    python scripts/generate_sam_patches.py --images photos --output patches
    python scripts/segment_images.py --images photos --patches patches --vocabulary "kite, sea~, person: man | woman" \\
        --output result

In the vocabulary, ~ marks stuff, and words after a colon are synonyms. The default model, samcp-everyday-lite, knows
some hundred words; with --clip, it knows any. Other models know the words of their training, or any with CLIP's text
encoder (MODEL.SAMCP.TEXT.ENCODER clip). The output has a picture per image, result/KEY.jpg, and a PNG
of segment ids, result/panoptic/KEY.png, with result/panoptic.json in COCO's format. A model without instances writes
label maps instead, result/semantic/KEY.png, with 255 for unlabeled pixels (with more than 255 classes: 16 bits, 65535).
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
    parser.add_argument(
        "--weights",
        default="samcp-everyday-lite",
        metavar="FILE",
        help="checkpoint, model file, or name of a shipped model (default %(default)s)",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder, including its subfolders")
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="patch cache of the images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--vocabulary",
        metavar="WORDS",
        help="classes separated by commas, a file with one class per line, or one of coco, ade20k, cityscapes, cod10k, "
        "pascal_part (default: the training classes)",
    )
    parser.add_argument(
        "--clip",
        default="",
        metavar="[NAME:]FILE",
        help="CLIP checkpoint, if it was moved since training; or a model of open_clip and its file or tag, to name "
        "what the default model finds, as in convnext_large_d_320:laion2b_s29b_b131k_ft_soup",
    )
    parser.add_argument("--device", default="", help="cpu or cuda (default: the training device if available, or cpu)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
