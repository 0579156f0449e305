#!/usr/bin/env python
"""Draw the synthetic dataset: two-coloured shapes in front of sky, grass, sand and water, with panoptic ground truth.

    python scripts/prepare_synthetic.py

The datasets are registered as synthetic_train and synthetic_val.
"""

import os
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser = command_parser(__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(root) / "synthetic",
        help="folder to write (default: synthetic under DETECTRON2_DATASETS, where the datasets are registered)",
    )
    parser.add_argument("--train", type=int, default=300, metavar="N", help="training images (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="validation images (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 224), metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from samcp.data.datasets.synthetic.prepare import make_synthetic_dataset
    from samcp.errors import exit_with_message

    with exit_with_message(interrupted="interrupted; repeat the command to start again"):
        make_synthetic_dataset(arguments.output, arguments.train, arguments.val, tuple(arguments.size), arguments.seed)
    print(f"{arguments.train} + {arguments.val} images in {arguments.output}")


if __name__ == "__main__":
    main()
