#!/usr/bin/env bash
# Installs what this machine lacks: `hack/setup.sh build` what building and running needs, `hack/setup.sh test` also what
# the tests and benchmarks drive. Debian and Ubuntu; elsewhere it says what to install.
set -euo pipefail

build=(gcc libc6-dev pkg-config iptables iproute2 util-linux ca-certificates curl)
test=("${build[@]}" buildah busybox-static crun docker-registry e2fsprogs libseccomp-dev nftables nginx procps skopeo systemd tar unzip user-mode-linux)
case "${1:-build}" in
  build) wanted=("${build[@]}") ;;
  test) wanted=("${test[@]}") ;;
  *) echo "usage: hack/setup.sh [build|test]" >&2; exit 2 ;;
esac

# Whether the first version in the text $2 is $1 or later.
is_at_least() {
  local found
  found=$(grep -oE '[0-9]+(\.[0-9]+)+' <<<"$2" | head -1)
  [ -n "$found" ] && printf '%s\n%s\n' "$1" "$found" | sort --check=quiet --version-sort
}

if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system; these packages (or what they are called here) must be installed: ${wanted[*]}" >&2
else
  missing=()
  for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "setup: run as root to install: ${missing[*]}" >&2; exit 3; }
    echo "setup: installing ${missing[*]}" >&2
    apt-get update -qq >&2
    # The registry's unit would take port 5000 of the machine: the tests start their own, elsewhere.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  fi
fi

export PATH="$HOME/.cargo/bin:$PATH"
# Debian's may be too old.
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
if ! is_at_least "$rust" "$(cargo --version 2>/dev/null || true)"; then
  echo "setup: installing Rust by rustup; $rust or later is needed" >&2
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy >&2
fi

# The field's own parts, which the tests and benchmarks compare with, are built from Go modules. Debian's Go may be too old for them:
# this is the toolchain that go.dev/dl has, as the module registry serves it.
export PATH="/usr/local/go/bin:$PATH"
if [ "${1:-build}" = test ] && ! is_at_least 1.26 "$(go version 2>/dev/null || true)"; then
  version=go1.26.8
  case "$(uname -m)" in
    x86_64) platform=linux-amd64 sum=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
    aarch64) platform=linux-arm64 sum=02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
    *) platform='' ;;
  esac
  if [ -z "$platform" ]; then
    echo "setup: no Go for $(uname -m) is known here; install Go 1.26 or later (https://go.dev/dl)" >&2
  else
    [ "$(id -u)" = 0 ] || { echo "setup: run as root to install Go in /usr/local/go" >&2; exit 3; }
    [ ! -e /usr/local/go ] || { echo "setup: the Go in /usr/local/go is older than 1.26: update it (https://go.dev/dl)" >&2; exit 3; }
    echo "setup: installing $version in /usr/local/go" >&2
    fetched=$(mktemp -d)
    trap 'rm -rf "$fetched"' EXIT
    name=v0.0.1-$version.$platform
    curl --proto '=https' --tlsv1.2 -sSfL -o "$fetched/go.zip" "https://proxy.golang.org/golang.org/toolchain/@v/$name.zip"
    echo "$sum  $fetched/go.zip" | sha256sum --check --quiet
    unzip -q "$fetched/go.zip" -d "$fetched"
    # Archives of modules carry no modes.
    chmod +x "$fetched/golang.org/toolchain@$name"/{bin/*,pkg/tool/*/*}
    mv "$fetched/golang.org/toolchain@$name" /usr/local/go
  fi
fi
