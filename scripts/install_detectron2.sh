#!/usr/bin/env bash
# Install Detectron2 into the environment of the Python interpreter $1, unless it is installed already.
set -euo pipefail
python=${1:?usage: scripts/install_detectron2.sh PYTHON}
scripts=$(dirname "$0")

if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)'; then
    echo "detectron2: already installed"
    exit 0
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$scripts/build_detectron2_wheel.sh" "$python" "$folder"
# fvcore and iopath are missing from the dependencies that the package declares.
"$python" -m pip install --constraint "$scripts/../constraints.txt" "$folder"/sal_detectron2-*.whl fvcore iopath
