#!/usr/bin/env python
"""Time segmentation of whole images: patches by SAM, and everything after them (Table 11).

    python scripts/measure_time.py --weights model_final.pth --images coco/val2017 --limit 100 --device cuda \\
        --checkpoint sam_vit_h_4b8939.pth

Prints seconds per image (mean and percentiles) of each stage, the peak memory and the device. --generator selects
another source of patches. The first image is processed once before timing starts.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import measure_time

    measure_time.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint or model file of SAM-CP")
    text = "image size, fusion, and classes of the test dataset, as in an evaluation (default: those of the training)"
    parser.add_argument("--config-file", default="", metavar="FILE", help=text)
    parser.add_argument("--clip", default="", metavar="FILE", help="CLIP checkpoint, if it was moved since training")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--limit", type=count, default=50, metavar="N", help="the first N images (default %(default)s)")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="for both networks; of several GPUs, CUDA_VISIBLE_DEVICES selects one (default %(default)s)",
    )
    parser.add_argument("--generator", choices=("sam", "sam2", "contours"), default="sam", help="(default %(default)s)")
    parser.add_argument("--model-type", metavar="NAME", help="default: vit_h, sam2.1_hiera_large")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of SAM or SAM 2")
    parser.add_argument("--points-per-side", type=count, default=48, metavar="N", help="grid (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
