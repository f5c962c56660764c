# Holds one machine of a lab: namespaces of its own for network, mounts, processes, names and IPC; private /etc, /opt, /run,
# /var/lib and /var/log. It ends when its standard input does, also by the death of the test that holds the other end: the
# kernel then ends every process of the machine, and what namespaces do not contain is removed here.
#
# $1 the machine's directory, $2 its name, $3 the name of its cgroups
directory=$1

hold='
set -e
directory=$1
hostname "$2"
mkdir -p "$directory"/{var-lib,var-log,layers}
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind "$directory/var-lib" /var/lib
mount --bind "$directory/var-log" /var/log
mount -t tmpfs tmpfs "$directory/layers"
for tree in etc opt; do
  mkdir -p "$directory/layers/$tree"/{upper,work}
  mount -t overlay -o "lowerdir=/$tree,upperdir=$directory/layers/$tree/upper,workdir=$directory/layers/$tree/work" overlay "/$tree"
done
mkdir -p /var/lib/cni /etc/cni/net.d
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo ready
# bash reaps what is left to the first process of a namespace.
while read -r _; do :; done'

unshare --net --mount --pid --uts --ipc --propagation private --fork --kill-child --mount-proc \
  bash -c "$hold" machine "$directory" "$2"

for _ in {1..100}; do
  trees=$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$3")
  [ -n "$trees" ] || break
  # shellcheck disable=SC2086
  find $trees -depth -type d -exec rmdir {} \; 2>/dev/null
  sleep 0.05
done
rm -rf --one-file-system "$directory"
