#!/usr/bin/env bash
# Every benchmark, ours and the peer's in one run, as ratios (peer / ours: larger is better for us).
#
#   hack/bench.sh [NAME…] [--json FILE]      an unknown NAME prints the list
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"

[ "$(id -u)" = 0 ] || { echo "bench: containers need root; run it as root" >&2; exit 3; }
hack/setup.sh test
hack/build.sh
PODWRIGHT_TOOLS=$(hack/tools.sh)
PODWRIGHT_BIN=$PWD/target/podwright
export PODWRIGHT_TOOLS PODWRIGHT_BIN
cargo build --release --locked -p e2e --bin bench

# In namespaces of its own. crun 1.8 takes the cgroups only where nothing but v1 is mounted: there, bind just those.
exec unshare --net --mount --propagation private sh -euc '
if [ -d /sys/fs/cgroup/memory ]; then
  view=$(mktemp -d)
  mount -t tmpfs tmpfs "$view"
  for hierarchy in /sys/fs/cgroup/*/; do
    name=$(basename "$hierarchy")
    [ "$name" = unified ] && continue
    mkdir "$view/$name"
    mount --bind "$hierarchy" "$view/$name"
  done
  mount --move "$view" /sys/fs/cgroup
  rmdir "$view"
fi
exec "$@"' bench target/release/bench "$@"
