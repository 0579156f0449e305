#!/usr/bin/env python
"""How much faster, and in how much less memory, SamGenerator finds the masks of segment_anything's own generator.

    python scripts/benchmark_generation.py --model-type vit_b vit_h --points-per-side 48

Both run on the same picture with the same weights, one after the other, and the table gives ratios. The weights are
random, which is good enough to time the encoder and the decoder: they do the same work whatever the weights. Random
masks, however, are noise, whose run-length encoding is absurdly long. So every batch of the decoder's output is
replaced, outside the timing, by smooth logits made from regions of the picture (`RegionLogits`), as many of which pass
the predicted-IoU threshold as --survival says; the stability of these masks, and their overlap, are what they are.

The decoder's time and nearly all of the rest are proportional to the number of prompts: with --measured-points-per-side
M the runs have M² prompts, and times of both are multiplied up to --points-per-side; the table says so.

Memory is measured in a process of its own for each run. There the decoder really runs for the first --memory-prompts
prompts and is left out afterwards: its batches all take the same, while what is kept of each batch grows.
"""

import argparse

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parser().parse_args()

    from samcp.commands import benchmark_generation

    benchmark_generation.main(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--model-type", nargs="+", choices=["vit_b", "vit_l", "vit_h"], default=["vit_b", "vit_h"])
    parser.add_argument("--points-per-side", type=int, default=48)
    parser.add_argument(
        "--measured-points-per-side", type=int, help="run with fewer points and multiply; by default all"
    )
    parser.add_argument(
        "--memory-points", type=int, nargs="*", default=[32, 128], help="points per side; none: no table"
    )
    parser.add_argument("--memory-prompts", type=int, default=192, help="prompts for which the decoder runs")
    parser.add_argument("--survival", type=float, default=0.6, help="share of masks above the predicted-IoU threshold")
    parser.add_argument("--picture", default="coffee", help="name of a photograph in skimage.data")
    parser.add_argument("--repeats", type=int, default=1, help="of the timing; 0: memory only")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
