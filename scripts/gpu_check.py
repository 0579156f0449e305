#!/usr/bin/env python
"""Test and measure on one GPU in at most 8 minutes; scripts/gpu_check.sh runs it with the packages of a bundle.

    scripts/gpu_check.sh --output output/gpu_check
    scripts/gpu_check.sh --device cpu --tiny    # the same code, small and not compiled, in three minutes on two cores

Runs, each in a process of its own and with a time limit of its own:

1. tests that compare the device with the CPU: patches of SAM and of the contour generator, training steps and inference
   without and with bfloat16, RoIAlign, DistributedDataParallel with one process, and the trainer in half precision;
2. segment-everything by SAM ViT-H and ViT-B, with 48 x 48 prompts and random weights, by segment_anything and by
   SamGenerator in float32, bfloat16, and compiled; with simulated masks, as `scripts/benchmark.py generation`;
3. training steps and inference without SAM of R50 and Swin-L.

Figures are written to --output after each row: gpu_check.md, a table for docs/benchmarks.md, and gpu_check.json. A
stage that may exceed the limit is skipped, and the command then ends with an error, as after a failed stage.
"""

import argparse
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import gpu_check

    gpu_check.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--device",
        default="cuda",
        choices=["cpu", "cuda"],
        help="of several GPUs, CUDA_VISIBLE_DEVICES selects one (default %(default)s)",
    )
    parser.add_argument("--tiny", action="store_true", help="small models and inputs, for a test without a GPU")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="limit of the check, divided among the stages (default 8)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/gpu_check"), metavar="DIR", help="folder (default %(default)s)"
    )
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
