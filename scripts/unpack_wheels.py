#!/usr/bin/env python
"""Unpack the wheels of packages that this interpreter lacks.

    python scripts/unpack_wheels.py output/gpu-bundle FOLDER    # then put FOLDER on PYTHONPATH

Uses the standard library only, and needs no pip.
"""

import argparse
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of wheels; may be missing if nothing is needed")
    parser.add_argument("folder", type=Path, help="for the packages")
    arguments = parser.parse_args()
    there, unpacked = unpack_missing(arguments.bundle, arguments.folder)
    print(f"Python {sys.version.split()[0]}, with {', '.join(there) or 'none of the packages'}", file=sys.stderr)
    print(f"from {arguments.bundle}: {', '.join(unpacked) or 'nothing'}", file=sys.stderr)


def unpack_missing(bundle: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Unpack the wheels whose package is not installed; return name and version of the installed and of the others."""
    there, unpacked = [], []
    for wheel in sorted(bundle.glob("*.whl")):
        name, wheel_version = wheel.name.split("-")[:2]
        try:
            there.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            unpacked.append(f"{name} {wheel_version}")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    return there, unpacked


if __name__ == "__main__":
    main()
