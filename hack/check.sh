#!/usr/bin/env bash
# Formatting, lints, documentation links, and the licences and sources of dependencies. Needs no root.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --locked --quiet

deny="${XDG_CACHE_HOME:-$HOME/.cache}/podwright/cargo-deny"
if [ ! -x "$deny/bin/cargo-deny" ]; then
  echo "check: building cargo-deny once, about 5 minutes on 2 cores" >&2
  cargo install --quiet --locked cargo-deny --version 0.20.2 --root "$deny"
fi
# It looks at every platform's dependencies; a build fetched this one's.
cargo fetch --locked --quiet
"$deny/bin/cargo-deny" --offline --log-level error check bans licenses sources
