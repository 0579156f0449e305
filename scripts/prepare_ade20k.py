#!/usr/bin/env python
"""Convert the releases of ADE20K into label maps, panoptic PNGs and COCO json files.

    python scripts/prepare_ade20k.py --workers 8

The folder contains the unpacked ADEChallengeData2016.zip and, as annotations_instance, the unpacked
annotations_instance.tar. Without the latter, only label maps are written. Existing files are kept, so that an
interrupted run can be continued.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="ADEChallengeData2016").parse_args()

    from samcp.data.datasets.ade20k.prepare import prepare_ade20k
    from samcp.data.datasets.prepare_command import run

    run(prepare_ade20k, arguments)


if __name__ == "__main__":
    main()
