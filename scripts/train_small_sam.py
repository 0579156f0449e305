#!/usr/bin/env python
"""Train a small SAM on photographs or drawn scenes, for `--generator sam --model-type lite`.

    python scripts/train_small_sam.py --output output/small_sam
    python scripts/train_small_sam.py --images scenes --output output/sam_scenes

Photographs are the training images of BSDS500, CCP and CamVid under DETECTRON2_DATASETS (docs/datasets.md), about 8
hours on one CPU core. Scenes are drawn as needed, about 45 minutes on one core, and validated on miniature_val
(scripts/prepare_miniature.py). No weights of this model type are shipped. Every --save-every iterations,
checkpoint.pth, the weights sam_lite.safetensors, and a line of log.jsonl are written: the losses, and figures of the
masks of random points in 20 validation images. Repeat the command to continue after an interruption. The weights can
be used while the training runs:

    python scripts/generate_sam_patches.py --images DIR --output OUT \\
        --model-type lite --checkpoint output/small_sam/sam_lite.safetensors

At the end, validation.json has Table 9 of the datasets named by --validate.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser, count

_STRIDE = 32  # of the encoder


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import train_small_sam

    train_small_sam.main(arguments)


def _size(text: str) -> int:
    if count(text) % _STRIDE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {_STRIDE}, not {text}")
    return int(text)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    text = "what to train on (default %(default)s)"
    add("--images", choices=("photographs", "scenes"), default="photographs", help=text)
    add("--output", type=Path, default=Path("output/small_sam"), help="folder (default %(default)s)")
    add("--initial", type=Path, metavar="FILE", help="weights to start from (default: those of the contour network)")
    add("--iterations", type=count, metavar="N", help="(default 12000, for scenes 3000)")
    add("--batch", type=count, default=4, metavar="N", help="images per iteration (default %(default)s)")
    add("--points", type=count, metavar="N", help="prompts per image (default 32, for scenes 16)")
    add("--image-size", type=_size, metavar="N", help="of the model's input (default 320, for scenes 256)")
    add("--lr", type=float, default=8e-4, metavar="X", help="learning rate (default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="loading processes (default %(default)s)")
    add("--save-every", type=count, default=50, metavar="N", help="iterations (default %(default)s)")
    validation = parser.add_argument_group("validation").add_argument
    validation(
        "--validate",
        nargs="*",
        metavar="DATASET",
        help="registered datasets (default: coco_2017_train, which is not used for training, and bsds500_val; for "
        "scenes miniature_val)",
    )
    validation("--limit", type=count, metavar="N", help="use the first N images only")
    validation("--points-per-side", type=count, default=32, metavar="N", help="of the grid (default %(default)s)")
    validation("--pred-iou-thresh", type=float, default=0.5, metavar="X", help="(default %(default)s)")
    validation("--stability-score-thresh", type=float, default=0.8, metavar="X", help="(default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
