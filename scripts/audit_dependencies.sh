#!/usr/bin/env bash
# Check the packages of requirements.txt for known vulnerabilities; without a connection, say that nothing was checked.
#
#     scripts/audit_dependencies.sh PYTHON
set -euo pipefail
python=${1:?usage: scripts/audit_dependencies.sh PYTHON}
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if "$python" -m pip_audit --vulnerability-service osv --disable-pip --require-hashes --requirement requirements.txt \
    --progress-spinner off --timeout 15 >"$log" 2>&1; then
    tail -n 1 "$log"
elif grep -q -e ConnectionError -e ConnectTimeout -e ReadTimeout -e ServiceError "$log"; then
    echo "audit: the list of vulnerabilities cannot be reached, so the dependencies were not checked"
else
    cat "$log"
    exit 1
fi
