#!/usr/bin/env bash
# Installs what is missing and runs every test. Says at the end what it could not run here, and why.
#
# On a new machine with 2 cores: 35 to 65 minutes: building Rust three times and the Go tools once, and 12 of stories.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:/usr/local/go/bin:$PATH"

not_run=()
step() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }

step "set-up"
if [ "$(id -u)" = 0 ]; then hack/setup.sh test; fi
step "check"
hack/check.sh
step "tests that need nothing"
cargo test --workspace --locked
if [ "$(id -u)" != 0 ]; then
  not_run+=("hack/e2e.sh: the root tests need root; run hack/test.sh as root")
elif ! command -v go >/dev/null; then
  not_run+=("hack/e2e.sh: its peers (crictl, runc, containerd) are built with Go 1.26, which is not installed")
else
  step "tests that need root"
  hack/e2e.sh
fi

step "done"
if [ "${#not_run[@]}" -gt 0 ]; then
  printf 'not run here: %s\n' "${not_run[@]}"
fi
