#!/usr/bin/env python
"""Time the parts of a forward pass, compare with Mask2Former, and measure growth with patches and classes.

    python scripts/benchmark_model.py
    python scripts/benchmark_model.py --device cuda --threads 1

Prints three tables; the rows of each are measured in turns within one run:

1. the parts of SAM-CP's forward pass, R50-FPN alone, and Mask2Former-R50 of transformers (`pip install -e '.[bench]'`);
2. merging patches into queries' masks, by RLEs and densely, as a maximum over float masks;
3. time and peak memory of everything after the FPN, for increasing numbers of patches and classes, with semantic
   queries for stuff or for all classes.

Weights are random, which changes no part's work but two. Merged boxes: a trained model's queries often share theirs, so
each instance query is given its own patch's box, moved in every layer for a third of the queries, so that a third of
all boxes are different ones (28 % in the demo's trained model). And the last scores: as after training, a query's
entity is its patch and those inside, and 30 instances and 10 regions pass the threshold.
"""

import argparse

from samcp.command_line import command_parser


def main() -> None:
    arguments = _parse_arguments()

    from samcp.commands import benchmark_model

    benchmark_model.main(arguments)


def _parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1088], metavar=("H", "W"), help="of the input")
    parser.add_argument("--patches", type=int, default=150)
    parser.add_argument("--classes", type=int, default=133)
    parser.add_argument("--more-patches", type=int, nargs="*", default=[50, 100, 200, 400, 800, 1600])
    parser.add_argument("--more-classes", type=int, nargs="*", default=[10, 100, 500, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--queries", default="stuff", choices=["stuff", "all"], help="which classes have a semantic one"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
