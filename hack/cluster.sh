#!/usr/bin/env bash
# A real Kubernetes cluster on this machine, in namespaces of its own, to play with or to debug a story on:
#
#   hack/cluster.sh up [--nodes N] [--kind podwright|stock]    starts it: control plane, registry, N nodes (1), CoreDNS
#   hack/cluster.sh kubectl ARGUMENT…                          the cluster's own kubectl, as admin
#   hack/cluster.sh enter MACHINE [COMMAND…]                   a shell on control-plane, router or node-N
#   hack/cluster.sh down                                       ends it; nothing is left
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"
state="${XDG_CACHE_HOME:-$HOME/.cache}/podwright/cluster"

usage() { sed -n '4,7s/^#   //p' "$0" >&2; exit 2; }
running() { [ -e "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }
# field MACHINE NUMBER
field() { awk -v name="$1" -v field="$2" '$1 == name {print $field}' "$state/machines"; }

up() {
  running && { echo "cluster: it is up already; hack/cluster.sh down ends it" >&2; exit 1; }
  [ "$(id -u)" = 0 ] || { echo "cluster: it makes namespaces; run it as root" >&2; exit 3; }
  hack/setup.sh test
  hack/build.sh
  PODWRIGHT_TOOLS=$(hack/tools.sh)
  PODWRIGHT_BIN=$PWD/target/podwright
  export PODWRIGHT_TOOLS PODWRIGHT_BIN
  cargo build --locked -p e2e --bin cluster
  rm -rf "$state"
  mkdir -p "$state"
  echo "$PODWRIGHT_TOOLS" >"$state/tools"
  setsid target/debug/cluster "$state" "$@" </dev/null >"$state/log" 2>&1 &
  echo $! >"$state/pid"
  echo "cluster: starting; about 20 seconds" >&2
  until [ -e "$state/ready" ]; do
    running || { cat "$state/log" >&2; exit 1; }
    sleep 0.2
  done
  "$0" kubectl get nodes -o wide
}

down() {
  running || { echo "cluster: there is none" >&2; exit 0; }
  kill "$(cat "$state/pid")"
  # Each machine removes its own directory when it is gone.
  [ ! -e "$state/machines" ] || while read -r _ _ directory; do
    while [ -e "$directory" ]; do sleep 0.1; done
  done <"$state/machines"
  rm -rf "$state"
  echo "cluster: down" >&2
}

enter() {
  running || { echo "cluster: there is none; hack/cluster.sh up starts one" >&2; exit 1; }
  local pid
  pid=$(field "$1" 2)
  [ -n "$pid" ] || { echo "cluster: no machine $1; there are:" $(awk '{print $1}' "$state/machines") >&2; exit 2; }
  shift
  [ $# -gt 0 ] || set -- bash
  exec nsenter --target="$pid" --net --mount --pid --uts --ipc -- "$@"
}

command=${1:-}
[ -n "$command" ] && shift
case "$command" in
  up) up "$@" ;;
  down) down ;;
  enter) [ $# -gt 0 ] || usage; enter "$@" ;;
  kubectl) enter control-plane env KUBECONFIG="$state/kubeconfig" "$(cat "$state/tools")/kubectl" "$@" ;;
  *) usage ;;
esac
