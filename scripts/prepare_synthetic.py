#!/usr/bin/env python
"""Draw the synthetic dataset: two-coloured shapes in front of sky, grass, sand and water, with panoptic ground truth.

    python scripts/prepare_synthetic.py

The datasets are registered as synthetic_train and synthetic_val.
"""

from samcp.command_line import drawing_parser


def main() -> None:
    parser = drawing_parser(__doc__, folder="synthetic", train=300, val=40)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224), metavar=("HEIGHT", "WIDTH"), help="in pixels")
    arguments = parser.parse_args()

    from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
    from samcp.errors import exit_with_message

    with exit_with_message(interrupted="interrupted; repeat the command to start again"):
        make_synthetic_dataset(arguments.output, arguments.train, arguments.val, tuple(arguments.size), arguments.seed)
    print(f"{arguments.train} + {arguments.val} images in {arguments.output}")


if __name__ == "__main__":
    main()
