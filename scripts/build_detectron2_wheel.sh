#!/usr/bin/env bash
# Write Detectron2 as a wheel for any Python into the folder $2, with the help of the Python interpreter $1.
#
# Detectron2 has no official release in the package registry. The package `sal-detectron2` 0.7.2 contains the official
# code of 2024-04-17 (commit a59f0563). Its wheel is tagged for CPython 3.10 because of a compiled extension that SAM-CP
# does not use; the Python code also runs on later versions. Therefore the wheel is downloaded, checked and retagged.
set -euo pipefail
python=${1:?usage: scripts/build_detectron2_wheel.sh PYTHON FOLDER}
output=${2:?usage: scripts/build_detectron2_wheel.sh PYTHON FOLDER}
sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.10 --dest "$folder" sal-detectron2==0.7.2
wheel=$(echo "$folder"/*.whl)
got=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$wheel")
if [ "$got" != "$sha256" ]; then
    echo "detectron2: $(basename "$wheel") has SHA-256 $got, not $sha256; nothing written." >&2
    echo "Install Detectron2 yourself (README.md, Install) and run this again." >&2
    exit 1
fi
"$python" -m pip install --quiet wheel
# The tag in the WHEEL file must match the file name, or `pip check` reports an unsupported platform.
"$python" -m wheel unpack --dest "$folder" "$wheel" >/dev/null
unpacked="$folder/sal_detectron2-0.7.2"
tags="$unpacked/sal_detectron2-0.7.2.dist-info/WHEEL"
sed 's/^Tag: .*/Tag: py3-none-any/' "$tags" >"$folder/WHEEL" && mv "$folder/WHEEL" "$tags"
"$python" -m wheel pack --dest-dir "$output" "$unpacked" >/dev/null
