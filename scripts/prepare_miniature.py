#!/usr/bin/env python
"""Draw the scenes of the miniature world, with panoptic ground truth and parts.

    python scripts/prepare_miniature.py

The datasets are registered as miniature_{train,val,open_val,shifted_val,camouflage_val,tiny_val}, and with annotations
of parts as miniature_parts_{train,val} and miniature_parts_general_{train,val}; see docs/datasets.md.
"""

import os
import sys
from pathlib import Path

from samcp.command_line import command_parser


def main() -> None:
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser = command_parser(__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(root) / "miniature",
        help="folder to write (default: miniature under DETECTRON2_DATASETS, where the datasets are registered)",
    )
    parser.add_argument("--train", type=int, default=600, metavar="N", help="training images (default %(default)s)")
    parser.add_argument(
        "--val", type=int, default=100, metavar="N", help="images of each other split (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from samcp.data.datasets.miniature.prepare import make_miniature_dataset
    from samcp.errors import DataError

    try:
        make_miniature_dataset(arguments.output, arguments.train, arguments.val, arguments.seed)
    except DataError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.train} training images, and {arguments.val} of each other split, in {arguments.output}")


if __name__ == "__main__":
    main()
