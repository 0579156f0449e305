#!/usr/bin/env bash
# Run scripts/gpu_check.py on a machine that has only Python 3.11 or newer and PyTorch with torchvision, without network.
#
#     scripts/gpu_check.sh [--bundle DIR] [options of scripts/gpu_check.py]
#
# Packages that the machine lacks come from the folder of wheels that `make gpu-bundle` writes (default: the repository's
# output/gpu-bundle); those that it has are used as they are. Nothing is installed. PYTHON selects the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
bundle=$root/output/gpu-bundle
if [ "${1:-}" = --bundle ]; then
    bundle=${2:?--bundle needs a folder}
    [ -d "$bundle" ] || { echo "error: --bundle $bundle: no such folder" >&2; exit 2; }
    shift 2
fi
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
"$python" "$root/scripts/unpack_wheels.py" "$bundle" "$packages"
export PYTHONPATH="$root:$root/projects/samcp:$packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" "$root/scripts/gpu_check.py" "$@"
