#!/usr/bin/env python
"""Convert ADE20K's releases into the layout in which it is trained on and evaluated.

    python scripts/prepare_ade20k.py --workers 8

The folder holds the unpacked ADEChallengeData2016.zip, and in it annotations_instance, the unpacked
annotations_instance.tar; without the latter only the semantic part is made. Files that are there already are kept, so
that an interrupted run continues.
"""

from samcp.data.datasets.ade20k.prepare import prepare_ade20k
from samcp.data.datasets.prepare_command import run


def main() -> None:
    run(prepare_ade20k, folder="ADEChallengeData2016", description=__doc__)


if __name__ == "__main__":
    main()
