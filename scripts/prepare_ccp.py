#!/usr/bin/env python
"""Merge the rare classes of Clothing Co-Parsing, as ccp_train and ccp_val need them.

    python scripts/prepare_ccp.py

The folder contains images/{train,val}/ID.jpg and annotations/{train,val}/ID.png with the release's 59 labels. Writes
labels/{train,val}/ID.png with 16 classes. Existing files are kept.
"""

from samcp.command_line import conversion_parser


def main() -> None:
    arguments = conversion_parser(__doc__, folder="ccp").parse_args()

    from samcp.data.datasets.ccp.prepare import prepare_ccp
    from samcp.data.datasets.prepare_command import run

    run(prepare_ccp, arguments)


if __name__ == "__main__":
    main()
