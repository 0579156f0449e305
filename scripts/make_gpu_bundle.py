#!/usr/bin/env python
"""Collect the wheels that scripts/gpu_check.sh needs beside Python and PyTorch, in a folder below 50 MB.

    python scripts/make_gpu_bundle.py --python-version 3.12 --output output/gpu-bundle

The versions are those of constraints.txt. PyTorch, torchvision and their dependencies (numpy, Pillow, ...) are not
included. Wheels are compressed again, with LZMA, and without their own tests, sample pictures and fonts, and the
compiled part of Detectron2, which none of the checks uses; this takes some minutes. An earlier bundle in the folder is
replaced. scripts/unpack_wheels.py unpacks them.
"""

import argparse
import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 50_000_000  # bytes
WHEELS = (
    *("h5py", "pycocotools", "safetensors", "scikit-image", "scipy", "segment-anything", "timm", "zstandard"),
    *("braceexpand", "cloudpickle", "imageio", "lazy-loader", "omegaconf", "panopticapi-lite", "portalocker", "pyyaml"),
    *("tabulate", "termcolor", "tifffile", "tqdm", "yacs"),
    *("matplotlib", "contourpy", "cycler", "kiwisolver", "packaging", "pyparsing", "python-dateutil"),
    *("pytest", "iniconfig", "pluggy", "pygments"),
)
SOURCES = ("antlr4-python3-runtime", "fvcore", "iopath")  # pure Python without wheels in the registry
UNUSED = (
    *("*/tests/*", "zstandard/_cffi*", "detectron2/_C.*", "matplotlib/mpl-data/fonts/*"),
    *("matplotlib/mpl-data/sample_data/*", "skimage/data/*.png", "skimage/data/*.jpg", "skimage/data/*.np*"),
)
USED = ("skimage/data/coffee.png",)  # the photograph of the benchmarks
GLIBC = (5, 12, 17, 24, 26, 27, 28)  # minor versions of the tags that wheels have


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "output/gpu-bundle", metavar="DIR")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as downloaded,
        tempfile.TemporaryDirectory(prefix=".bundle-", dir=arguments.output) as bundle,
    ):
        download(Path(downloaded), arguments.python_version)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda wheel: compress(wheel, Path(bundle)), sorted(Path(downloaded).glob("*.whl"))))
        replace_wheels(arguments.output, Path(bundle))
    files = list(arguments.output.glob("*.whl"))
    size = sum(file.stat().st_size for file in files)
    print(f"{arguments.output}: {len(files)} wheels, {size / 1e6:.1f} MB")
    if size > LIMIT:
        sys.exit(f"error: the bundle is larger than {LIMIT / 1e6:.0f} MB; remove a package or more files of one")


def download(folder: Path, python_version: str) -> None:
    """Write the wheels as the registry has them, or built from source, into a folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += [f"--platform=manylinux{name}_x86_64" for name in ("1", "2010", "2014")]
    options = ["--no-deps", "--constraint", str(ROOT / "constraints.txt")]
    target = ["--only-binary=:all:", "--python-version", python_version, "--implementation=cp", *platforms]
    subprocess.run([*pip, "download", *options, *target, "--dest", str(folder), *WHEELS], check=True)
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(folder), *SOURCES], check=True)
    subprocess.run([str(ROOT / "scripts/build_detectron2_wheel.sh"), sys.executable, str(folder)], check=True)


def compress(wheel: Path, folder: Path) -> None:
    """Copy a wheel without unused files and with stronger compression."""
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(folder / wheel.name, "w", zipfile.ZIP_LZMA) as target,
    ):
        for name in source.namelist():
            used = name in USED or not any(fnmatch.fnmatch(name, pattern) for pattern in UNUSED)
            if used and not name.endswith("/"):
                target.writestr(name, source.read(name))


def replace_wheels(folder: Path, bundle: Path) -> None:
    """Replace the wheels of an earlier bundle in a folder; exit with an error if it has wheels of other packages."""
    wheels = sorted(bundle.glob("*.whl"))
    packages, earlier = {_package(wheel) for wheel in wheels}, sorted(folder.glob("*.whl"))
    others = [wheel for wheel in earlier if _package(wheel) not in packages]
    if others:
        sys.exit(f"error: {others[0]} is not of a bundle; choose another folder by --output")
    for wheel in earlier:
        wheel.unlink()
    for wheel in wheels:
        wheel.rename(folder / wheel.name)


def _package(wheel: Path) -> str:
    return wheel.name.partition("-")[0].lower()


if __name__ == "__main__":
    main()
