#!/usr/bin/env python
"""Make of Cityscapes' release what it lacks: label maps of train ids, and the panoptic form.

    python scripts/prepare_cityscapes.py --workers 8

The folder holds the unpacked gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip. Files that are there already are
kept, so that an interrupted run continues.
"""

from samcp.data.datasets.cityscapes.prepare import prepare_cityscapes
from samcp.data.datasets.prepare_command import run


def main() -> None:
    run(prepare_cityscapes, folder="cityscapes", description=__doc__)


if __name__ == "__main__":
    main()
