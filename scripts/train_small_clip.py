#!/usr/bin/env python
"""Train a small CLIP on drawn scenes, the model samcp-clip-lite.

    python scripts/train_small_clip.py --output output/small_clip

Takes about half an hour of one CPU core, and needs no data. Every --save-every iterations it writes checkpoint.pth, the
weights clip_lite.safetensors, and a line of log.jsonl: the loss, and the zero-shot accuracy on crops and on regions of
other scenes. Repeat the command to continue after an interruption. The weights are used by

    MODEL.CLIP.NAME samcp-clip-lite MODEL.CLIP.PRETRAINED output/small_clip/clip_lite.safetensors

At the end, accuracy.json has the accuracy for more scenes, also of the shifted domain.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser, count


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import train_small_clip

    train_small_clip.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, default=Path("output/small_clip"), help="folder (default %(default)s)")
    add("--iterations", type=count, default=2400, metavar="N", help="(default %(default)s)")
    add("--batch", type=count, default=4, metavar="N", help="scenes per iteration (default %(default)s)")
    add("--crops", type=count, default=8, metavar="N", help="per scene (default %(default)s)")
    add("--lr", type=float, default=1e-3, metavar="X", help="of the image tower (default %(default)s)")
    add("--text-lr", type=float, default=5e-4, metavar="X", help="of the text tower (default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    add("--workers", type=int, default=0, metavar="N", help="loading processes (default %(default)s)")
    add("--save-every", type=count, default=50, metavar="N", help="iterations (default %(default)s)")
    add("--curve-scenes", type=count, default=20, metavar="N", help="measured each time (default %(default)s)")
    add("--scenes", type=count, default=200, metavar="N", help="measured at the end (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
