# Builds this module's programs into the directory $1. Called by hack/tools.sh.
set -euo pipefail
cd "$(dirname "$0")"
out=$1

# build TAGS CGO OUTPUT PACKAGE
build() {
  local started=$SECONDS
  CGO_ENABLED=$2 go build -tags "$1" -trimpath -ldflags '-s -w' -o "$out/$3" "$4"
  echo "tools: built $3 in $((SECONDS - started)) s"
}
build seccomp 1 runc github.com/opencontainers/runc
build no_btrfs,no_devmapper,no_zfs 0 containerd github.com/containerd/containerd/v2/cmd/containerd
build '' 0 containerd-shim-runc-v2 github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
build '' 0 ctr github.com/containerd/containerd/v2/cmd/ctr
mkdir -p "$out/cni"
for plugin in main/bridge main/loopback main/ptp ipam/host-local meta/portmap meta/firewall meta/bandwidth meta/tuning; do
  build '' 0 "cni/${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin"
done
