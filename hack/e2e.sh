#!/usr/bin/env bash
# Runs the tests that need root, on real peers, in namespaces of their own. Arguments filter them as `cargo test` does:
# `hack/e2e.sh` runs all, `hack/e2e.sh on_podwright` those whose names contain it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/local/go/bin"

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

# Stories about faults wait most of the time, for minutes: they run beside the others.
waiting=cluster_faults
told=$(mktemp)
trap 'rm -f "$told"' EXIT
stories --test "$waiting" -- --ignored --test-threads=2 "$@" >"$told" 2>&1 &
faults=$!
others=()
for file in e2e/tests/*.rs crates/*/tests/*.rs; do
  name=$(basename "$file" .rs)
  [ "$name" = "$waiting" ] || others+=(--test "$name")
done
failed=()
stories --lib --bins "${others[@]}" -- --ignored --test-threads=2 "$@" || failed+=("the others")
wait "$faults" || failed+=("$waiting")
cat "$told"
hack/leftovers.sh
[ "${#failed[@]}" = 0 ] || { echo "e2e: failed: ${failed[*]}" >&2; exit 1; }
