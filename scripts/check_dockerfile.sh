#!/usr/bin/env bash
# Run the RUN steps of the Dockerfile without Docker, except those of apt-get, in a copy of the repository, and then the
# entrypoint. The copy needs 6 GB in TMPDIR while the script runs.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory "$copy"
cd "$copy"
export TORCH_INDEX=${TORCH_INDEX:-}
sed -n 's/^RUN //p' Dockerfile | grep -v apt-get | while read -r step; do
    echo "== $step"
    bash -euo pipefail -c "$step" </dev/null
done
PATH=$copy/.venv/bin:$PATH
samcp models
