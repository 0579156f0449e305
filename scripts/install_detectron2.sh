#!/usr/bin/env bash
# Install Detectron2 into the environment of the Python interpreter $1, unless it is installed already.
#
# Detectron2 has no official release in the package registry. The package `sal-detectron2` 0.7.2 contains the official
# code of 2024-04-17 (commit a59f0563). Its wheel is tagged for CPython 3.10 because of a compiled extension that SAM-CP
# does not use; the Python code also runs on later versions. Therefore the wheel is downloaded, checked and retagged.
set -euo pipefail
python=${1:?usage: scripts/install_detectron2.sh PYTHON}
sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561

if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)'; then
    echo "detectron2: already installed"
    exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.10 --dest "$folder" sal-detectron2==0.7.2
wheel=$(echo "$folder"/*.whl)
got=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$wheel")
if [ "$got" != "$sha256" ]; then
    echo "detectron2: $(basename "$wheel") has SHA-256 $got, not $sha256; nothing installed." >&2
    echo "Install Detectron2 yourself (README.md, Install) and run this again." >&2
    exit 1
fi
"$python" -m pip install --quiet wheel
# The tag in the WHEEL file must match the file name, or `pip check` reports an unsupported platform.
"$python" -m wheel unpack --dest "$folder" "$wheel" >/dev/null
unpacked="$folder/sal_detectron2-0.7.2"
tags="$unpacked/sal_detectron2-0.7.2.dist-info/WHEEL"
sed 's/^Tag: .*/Tag: py3-none-any/' "$tags" >"$folder/WHEEL" && mv "$folder/WHEEL" "$tags"
"$python" -m wheel pack --dest-dir "$folder" "$unpacked" >/dev/null
# fvcore and iopath are missing from the dependencies that the package declares.
"$python" -m pip install --constraint "$(dirname "$0")/../constraints.txt" "$folder/sal_detectron2-0.7.2-py3-none-any.whl" fvcore iopath
