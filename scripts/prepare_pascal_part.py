#!/usr/bin/env python
"""Convert Pascal-Part's .mat annotations into COCO instance jsons of 93 kinds of parts, and of parts and objects.

    python scripts/prepare_pascal_part.py --workers 8

The folder holds Annotations_Part, unpacked from Pascal-Part's trainval.tar.gz, and VOCdevkit, unpacked from Pascal
VOC's VOCtrainval_03-May-2010.tar. Existing jsons are kept if they list the
images in the folder; delete them to create them again. An interrupted run continues.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="pascal_part").parse_args()

    from samcp.data.datasets.pascal_part.prepare import prepare_pascal_part
    from samcp.data.datasets.prepare_command import run

    run(prepare_pascal_part, arguments)


if __name__ == "__main__":
    main()
