#!/usr/bin/env python
"""Convert COD10K's masks into COCO instance json files with 69 classes of camouflaged animals.

    python scripts/prepare_cod10k.py --workers 8

The folder contains Train and Test, unpacked from COD10K-v3.zip. An existing json is kept if it lists the images of the
folder; delete it to create it again. An interrupted run can be continued.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="cod10k").parse_args()

    from samcp.data.datasets.cod10k.prepare import prepare_cod10k
    from samcp.data.datasets.prepare_command import run

    run(prepare_cod10k, arguments)


if __name__ == "__main__":
    main()
