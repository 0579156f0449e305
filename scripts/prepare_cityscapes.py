#!/usr/bin/env python
"""Make of Cityscapes' release what it lacks: label maps of train ids, and the panoptic form.

    python scripts/prepare_cityscapes.py --workers 8

The folder holds the unpacked gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip. Files that are there already are
kept, so that an interrupted run continues.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="cityscapes").parse_args()

    from samcp.data.datasets.cityscapes.prepare import prepare_cityscapes
    from samcp.data.datasets.prepare_command import run

    run(prepare_cityscapes, arguments)


if __name__ == "__main__":
    main()
