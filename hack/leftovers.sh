#!/usr/bin/env bash
# Fails when tests, the demo or benchmarks left anything of podwright's, containerd's or runc's on this machine.
set -euo pipefail

look() {
  find /sys/fs/cgroup -maxdepth 3 -type d \( -name 'podwright*' -o -name 'kubepods*' -o -name 'k8s.io' -o -name 'bench-*' \) 2>/dev/null | sed 's/^/cgroup: /'
  grep -hE 'podwright|/tmp/pw-|cni-' /proc/mounts | sed 's/^/mount: /' || true
  find /run/netns /var/run/netns -mindepth 1 2>/dev/null | sed 's/^/netns: /' || true
  for comm in /proc/[0-9]*/comm; do
    case "$(cat "$comm" 2>/dev/null)" in
      podwright*|containerd*|docker-registry|controlplane|kubelet|kube-proxy|agnhost|coredns)
        state=$(awk '/^State:/ {print $2}' "${comm%comm}status" 2>/dev/null || true)
        [ "$state" = Z ] || echo "process: ${comm%/comm} $(tr '\0' ' ' <"${comm%comm}cmdline" 2>/dev/null)" ;;
    esac
  done
  { iptables-save; iptables-legacy-save; } 2>/dev/null | grep -E '^:(KUBE|CNI|PODWRIGHT)-' | sed 's/^/rule in the root network namespace: /' || true
  find /var/lib/cni/networks -type f 2>/dev/null | sed 's/^/lease: /' || true
  find /tmp -maxdepth 1 -name 'pw-*' 2>/dev/null | sed 's/^/directory: /' || true
}

# The machines of a lab tidy up when the test that held them has ended: they get a moment.
for _ in {1..50}; do
  found=$(look)
  [ -n "$found" ] || break
  sleep 0.2
done
if [ -n "$found" ]; then
  printf 'leftovers:\n%s\n' "$found" >&2
  exit 1
fi
echo "leftovers: none (cgroups, mounts, network namespaces, processes, rules, leases, temporary directories)"
