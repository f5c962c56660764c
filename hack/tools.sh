#!/usr/bin/env bash
# Builds the real peers that tests and benchmarks run against (crictl, critest, runc, containerd, upstream CNI plugins) from the
# Go modules of e2e/tools, once, into a cache, and prints the directory that holds them.
#
# Cold, on 2 cores: about 3 minutes. When nothing changed: at once.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH="$PATH:/usr/local/go/bin"
command -v go >/dev/null || { echo "tools: Go is not installed; install Go 1.26 or later (https://go.dev/dl), then run this again" >&2; exit 3; }

key=$(cat e2e/tools/*/go.mod e2e/tools/*/go.sum hack/tools.sh | sha256sum | cut -c1-16)
bin="${XDG_CACHE_HOME:-$HOME/.cache}/podwright/tools/$key"
if [ -e "$bin/.complete" ]; then
  echo "$bin"
  exit 0
fi
mkdir -p "$bin/cni"

# build MODULE TAGS CGO OUTPUT PACKAGE
build() {
  echo "tools: building $4 ($5)" >&2
  (cd "e2e/tools/$1" && CGO_ENABLED=$3 go build -tags "$2" -trimpath -ldflags '-s -w' -o "$bin/$4" "$5")
}
echo "tools: building the peers into $bin, about 3 minutes on 2 cores" >&2
build cluster '' 0 crictl sigs.k8s.io/cri-tools/cmd/crictl
echo "tools: building critest" >&2
(cd e2e/tools/cluster && CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o "$bin/critest" sigs.k8s.io/cri-tools/cmd/critest)
build peers seccomp 1 runc github.com/opencontainers/runc
build peers no_btrfs,no_devmapper,no_zfs 0 containerd github.com/containerd/containerd/v2/cmd/containerd
build peers '' 0 containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
build peers '' 0 ctr github.com/containerd/containerd/v2/cmd/ctr
for plugin in main/bridge main/loopback main/ptp ipam/host-local meta/portmap meta/firewall meta/bandwidth meta/tuning; do
  build peers '' 0 "cni/${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin"
done
touch "$bin/.complete"
echo "$bin"
