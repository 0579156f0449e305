#!/usr/bin/env python
"""Convert ADE20K's releases into the layout in which it is trained on and evaluated.

    python scripts/prepare_ade20k.py --workers 8

The folder holds the unpacked ADEChallengeData2016.zip, and in it annotations_instance, the unpacked
annotations_instance.tar; without the latter only the semantic part is made. Files that are there already are kept, so
that an interrupted run continues.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="ADEChallengeData2016").parse_args()

    from samcp.data.datasets.ade20k.prepare import prepare_ade20k
    from samcp.data.datasets.prepare_command import run

    run(prepare_ade20k, arguments)


if __name__ == "__main__":
    main()
