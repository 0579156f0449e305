#!/usr/bin/env python
"""Draw the scenes of the miniature world, with panoptic ground truth and parts.

    python scripts/prepare_miniature.py

The datasets are registered as miniature_{train,val,open_val,shifted_val,camouflage_val,tiny_val}, and with annotations
of parts as miniature_parts_{train,val} and miniature_parts_general_{train,val}; see docs/datasets.md.
"""

from samcp.command_line import drawing_parser


def main() -> None:
    parser = drawing_parser(__doc__, folder="miniature", train=600, val=100)
    arguments = parser.parse_args()

    from samcp.data.datasets.miniature.prepare import make_miniature_dataset
    from samcp.errors import exit_with_message

    with exit_with_message(interrupted="interrupted; repeat the command to start again"):
        make_miniature_dataset(arguments.output, arguments.train, arguments.val, arguments.seed)
    print(f"{arguments.train} training images, and {arguments.val} of each other split, in {arguments.output}")


if __name__ == "__main__":
    main()
