#!/usr/bin/env bash
# Install Chromium for `make test-web`, unless there is one: Debian's package as root, else the build of Playwright.
#
#     scripts/install_chromium.sh PYTHON
set -euo pipefail
python=${1:?usage: scripts/install_chromium.sh PYTHON}

if command -v chromium chromium-browser google-chrome >/dev/null; then
    exit
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium
else
    "$python" -m playwright install chromium
fi
