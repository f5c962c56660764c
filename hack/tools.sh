#!/usr/bin/env bash
# Builds the real cluster and the real peers that tests and benchmarks run against, from the Go modules of e2e/tools, once, into a
# cache, and prints the directory that holds them all. With names of modules (`hack/tools.sh peers`) it builds only those.
#
# Each module is kept by its own files: a change of one builds only that one again. Cold, on 2 cores, with downloads: cluster
# about 6 minutes, peers 1, metrics-server 2. When nothing changed: at once.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH="/usr/local/go/bin:$PATH"
command -v go >/dev/null || { echo "tools: Go is not installed; install Go 1.26 or later (https://go.dev/dl), then run this again" >&2; exit 3; }

cache="${XDG_CACHE_HOME:-$HOME/.cache}/podwright/tools"
declare -A minutes=([cluster]=6 [peers]=1 [metrics-server]=2)
modules=("$@")
[ "${#modules[@]}" -gt 0 ] || modules=(cluster peers metrics-server)

# One builder at a time; others wait and find everything done.
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock --nonblock 9 || { echo "tools: another build is running; waiting for it" >&2; flock 9; }

key_of() { (cd "e2e/tools/$1" && cat build.sh go.mod go.sum $(find . -name '*.go' | LC_ALL=C sort)) | sha256sum | cut -c1-16; }

built=()
for module in "${modules[@]}"; do
  [ -n "${minutes[$module]:-}" ] || { echo "tools: no module $module; there are: ${!minutes[*]}" >&2; exit 2; }
  out="$cache/$module-$(key_of "$module")"
  if [ ! -e "$out/.complete" ]; then
    echo "tools: building $module into $out, about ${minutes[$module]} min on 2 cores when nothing is cached" >&2
    started=$SECONDS
    rm -rf "$out"
    mkdir -p "$out"
    bash "e2e/tools/$module/build.sh" "$out" >&2
    touch "$out/.complete"
    echo "tools: $module took $((SECONDS - started)) s" >&2
  fi
  built+=("$out")
done

# The one directory: links to the programs of each module.
all="$cache/all-$(printf '%s\n' "${built[@]}" | sha256sum | cut -c1-16)"
if [ ! -e "$all/.complete" ]; then
  rm -rf "$all"
  mkdir -p "$all"
  for out in "${built[@]}"; do ln -s "$out"/* "$all/"; done
  touch "$all/.complete"
fi
echo "$all"
