#!/usr/bin/env bash
# Installs what is missing, builds podwright and runs the demo node in network and mount namespaces of its own.
# Arguments go to `podwright demo`: `hack/run.sh --once` ends by itself.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"

[ "$(id -u)" = 0 ] || { echo "run: containers need root; run it as root" >&2; exit 3; }
hack/setup.sh build
hack/build.sh
exec target/podwright demo "$@"
