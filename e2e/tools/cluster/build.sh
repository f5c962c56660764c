# Builds this module's programs into the directory $1. Called by hack/tools.sh.
set -euo pipefail
cd "$(dirname "$0")"
out=$1

# Without these a server calls itself v0.0.0-master.
release=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${release#v1.}
set_version=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  set_version+=" -X $package.gitVersion=$release -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
done
flags=(-trimpath -ldflags "-s -w$set_version")
export CGO_ENABLED=0

build() {
  local started=$SECONDS
  go build "${flags[@]}" -o "$out/$1" "$2"
  echo "tools: built $1 in $((SECONDS - started)) s"
}
echo "tools: the control plane comes first and takes most of the time"
build controlplane ./controlplane
build kubelet k8s.io/kubernetes/cmd/kubelet
build kubectl k8s.io/kubernetes/cmd/kubectl
build kube-proxy k8s.io/kubernetes/cmd/kube-proxy
build agnhost k8s.io/kubernetes/test/images/agnhost
build coredns ./coredns
build crictl sigs.k8s.io/cri-tools/cmd/crictl
go test -c "${flags[@]}" -o "$out/critest" sigs.k8s.io/cri-tools/cmd/critest
echo "tools: built critest"
