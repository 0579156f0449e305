#!/usr/bin/env python
"""Compare time and memory of SamGenerator with segment_anything's SamAutomaticMaskGenerator.

    python scripts/benchmark_generation.py --model-type vit_b vit_h --points-per-side 48

Both run on the same image with the same random weights, one after the other. The time of encoder and decoder does not
depend on the weights, but masks of random weights are noise with very long run-length encodings. Therefore, outside the
timing, each batch of decoder outputs is replaced by smooth logits computed from regions of the image (`RegionLogits`).
A share of --survival of them passes the predicted-IoU threshold; their stability and overlap are not controlled.

The time of the decoder and of nearly all later steps is proportional to the number of prompts. With
--measured-points-per-side M, both generators run M² prompts, and the times are extrapolated to --points-per-side.

Memory is measured in a separate process per run. There the decoder runs for the first --memory-prompts prompts only:
all batches need the same memory for the decoder, while the stored results grow with each batch.
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
    parser.add_argument("--points-per-side", type=int, default=48, help="prompts (default %(default)s)")
    parser.add_argument(
        "--measured-points-per-side", type=int, help="points for which times are measured (default: all)"
    )
    parser.add_argument(
        "--memory-points",
        type=int,
        nargs="*",
        default=[32, 128],
        help="points per side of the memory table; no values: no table",
    )
    parser.add_argument(
        "--memory-prompts", type=int, default=192, help="prompts for which the decoder runs (default %(default)s)"
    )
    parser.add_argument("--survival", type=float, default=0.6, help="share of masks above the predicted-IoU threshold")
    parser.add_argument("--picture", default="coffee", help="name of a photograph in skimage.data")
    parser.add_argument(
        "--repeats", type=int, default=1, help="timing runs, of which the fastest counts; 0: memory only"
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: PyTorch's default)")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
