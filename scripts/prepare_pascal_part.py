#!/usr/bin/env python
"""Convert Pascal-Part's .mat files into COCO instance json files: 93 part classes, and parts with 20 object classes.

    python scripts/prepare_pascal_part.py --workers 8

The folder contains Annotations_Part, unpacked from Pascal-Part's trainval.tar.gz, and VOCdevkit, unpacked from Pascal
VOC's VOCtrainval_03-May-2010.tar. An existing json is kept if it lists the images of the folder; delete it to create it
again. An interrupted run can be continued.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="pascal_part").parse_args()

    from samcp.data.datasets.pascal_part.prepare import prepare_pascal_part
    from samcp.data.datasets.prepare_command import run

    run(prepare_pascal_part, arguments)


if __name__ == "__main__":
    main()
