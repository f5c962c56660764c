# Builds this module's program into the directory $1. Called by hack/tools.sh.
set -euo pipefail
cd "$(dirname "$0")"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/metrics-server" sigs.k8s.io/metrics-server/cmd/metrics-server
