#!/usr/bin/env bash
# Runs the tests that need root, on real peers, in namespaces of their own. Arguments filter them as `cargo test` does:
# `hack/e2e.sh` runs all, `hack/e2e.sh on_podwright` those whose names contain it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"

[ "$(id -u)" = 0 ] || { echo "e2e: these tests make namespaces; run it as root" >&2; exit 3; }
hack/setup.sh test
hack/build.sh
PODWRIGHT_TOOLS=$(hack/tools.sh)
PODWRIGHT_BIN=$PWD/target/podwright
PODWRIGHT_CRI_API=$(cd e2e/tools/cluster && go list -m -f '{{.Dir}}' k8s.io/cri-api)/pkg/apis/runtime/v1/api.proto
export PODWRIGHT_TOOLS PODWRIGHT_BIN PODWRIGHT_CRI_API

cargo test --workspace --locked --no-run
# Each test makes its own namespaces; this one only makes sure that a mistake cannot reach the machine's.
# All packages in one call: with others, cargo would build the dependencies again with other features.
stories() { unshare --net --mount --propagation private cargo test --workspace --locked --no-fail-fast "$@"; }

# Stories wait more than they work: three lots of files run beside each other, two stories of each lot at a time.
lots=(cluster_faults "cluster stories" "other stories")
files=([0]="" [1]="" [2]="--lib --bins")
for file in e2e/tests/*.rs crates/*/tests/*.rs; do
  case $(basename "$file" .rs) in
    cluster_faults) lot=0 ;;
    cluster_*) lot=1 ;;
    *) lot=2 ;;
  esac
  files[lot]+=" --test $(basename "$file" .rs)"
done
told=$(mktemp -d)
trap 'rm -rf "$told"' EXIT
running=()
for lot in 0 1; do
  # shellcheck disable=SC2086
  stories ${files[lot]} -- --ignored --test-threads=2 "$@" >"$told/$lot" 2>&1 &
  running[lot]=$!
done
failed=()
# shellcheck disable=SC2086
stories ${files[2]} -- --ignored --test-threads=2 "$@" || failed+=("${lots[2]}")
for lot in 1 0; do
  wait "${running[lot]}" || failed+=("${lots[lot]}")
  cat "$told/$lot"
done
hack/leftovers.sh
[ "${#failed[@]}" = 0 ] || { echo "e2e: failed: ${failed[*]}" >&2; exit 1; }
