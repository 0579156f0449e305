#!/usr/bin/env python
"""Write label maps of train ids and panoptic annotations for the Cityscapes release.

    python scripts/prepare_cityscapes.py --workers 8

The folder contains the unpacked gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip. Existing files are kept, so
that an interrupted run can be continued.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="cityscapes").parse_args()

    from samcp.data.datasets.cityscapes.prepare import prepare_cityscapes
    from samcp.data.datasets.prepare_command import run

    run(prepare_cityscapes, arguments)


if __name__ == "__main__":
    main()
