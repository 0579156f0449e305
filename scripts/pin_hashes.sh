#!/usr/bin/env bash
# Write requirements.txt, the packages of constraints.txt with the SHA-256 of each of their files: `make hashes`.
#
#     scripts/pin_hashes.sh PYTHON
#
# Detectron2 is not in it, since scripts/build_detectron2_wheel.sh checks its hash.
set -euo pipefail
python=${1:?usage: scripts/pin_hashes.sh PYTHON}
cd "$(dirname "$0")/.."

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
grep -v -e '^sal-detectron2==' -e '^#' constraints.txt >"$pins"
{
    echo "# Written by \`make hashes\` from constraints.txt; pip installs no file with another hash."
    "$python" -m uv pip compile --quiet --no-deps --universal --no-header --no-annotate --generate-hashes "$pins"
} >requirements.txt.new
mv requirements.txt.new requirements.txt
