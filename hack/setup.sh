#!/usr/bin/env bash
# Installs what this machine lacks: `hack/setup.sh build` what building and running needs, `hack/setup.sh test` also what
# the tests and benchmarks drive. Debian and Ubuntu; elsewhere it says what to install.
set -euo pipefail

build=(gcc libc6-dev pkg-config iptables iproute2 util-linux ca-certificates)
test=("${build[@]}" buildah busybox-static crun curl docker-registry libseccomp-dev nftables nginx procps skopeo systemd tar user-mode-linux)
case "${1:-build}" in
  build) wanted=("${build[@]}") ;;
  test) wanted=("${test[@]}") ;;
  *) echo "usage: hack/setup.sh [build|test]" >&2; exit 2 ;;
esac

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

export PATH="$PATH:$HOME/.cargo/bin"
if ! command -v cargo >/dev/null; then
  echo "setup: installing Rust by rustup" >&2
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy >&2
fi
