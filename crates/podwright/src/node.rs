//! Where everything of one node lies: flags and configuration file in, one resolved [`Node`] out. Resolving is pure; the
//! host's own name, resolv.conf and address are asked for here too.
//!
//! Two nodes on one machine need their own `--root`, `--state`, `--cgroup-root`, `--pod-cidr` and `--bridge`
//! (and network namespace); every other path follows from these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kubelet::{ImageGcPolicy, LogRotationPolicy};

use crate::cli::NodeArgs;
use crate::config::ConfigError;

const DEFAULT_ROOT: &str = "/var/lib/podwright";
const DEFAULT_STATE: &str = "/run/podwright";
const DEFAULT_AUTH_FILES: [&str; 3] =
    ["/var/lib/kubelet/config.json", "/root/.docker/config.json", "/.docker/config.json"];
const DEFAULT_RESOLV_CONF: &str = "/etc/resolv.conf";
const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
/// The servers behind systemd-resolved's stub.
const RESOLVED_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
const DEFAULT_BRIDGE: &str = "podwright0";
const DEFAULT_POD_CIDR: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, 85, 0, 0)), 16);
const DEFAULT_SERVICE_CIDR: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 0)), 16);
/// Where pods have IPv6 addresses.
const DEFAULT_SERVICE_CIDR_V6: IpNet =
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0)), 112);
/// The kernel's limit for the name of a network interface, without the final zero.
const INTERFACE_NAME_MAX: usize = 15;

/// One node: its paths, names and address ranges, all of them absolute and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Images, snapshots, writable layers, leases.
    pub(crate) root: PathBuf,
    /// Records of what runs, gone at boot.
    pub(crate) state: PathBuf,
    /// The CRI socket.
    pub(crate) listen: PathBuf,
    /// The CRI socket of the runtime that runs the pods instead of ours, as the kubelet's flag names it.
    pub(crate) container_runtime_endpoint: Option<String>,
    /// CNI configuration files.
    pub(crate) cni_conf_dir: PathBuf,
    /// CNI plugin programs.
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// `hosts.toml` files.
    pub(crate) registry_config_dir: PathBuf,
    /// Logins of pulls that bring none.
    pub(crate) registry_auth_files: Vec<PathBuf>,
    /// The cgroup of supervisors, and of pods that name no parent.
    pub(crate) runtime_cgroup: String,
    /// The cgroup that holds `kubepods`.
    pub(crate) kubelet_cgroup: String,
    /// The addresses of pods: one range, or one of each family.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// The addresses of Services, of the same families.
    pub(crate) service_cidrs: Vec<IpNet>,
    /// The bridge of pods.
    pub(crate) bridge: String,
    /// The name of the node.
    pub(crate) name: String,
    /// The addresses the user gave, if any.
    pub(crate) ips: Vec<IpAddr>,
    /// Volumes of pods.
    pub(crate) kubelet_dir: PathBuf,
    /// Logs of pods.
    pub(crate) pod_logs_dir: PathBuf,
    /// Links to the logs of containers.
    pub(crate) container_logs_dir: PathBuf,
    /// What pods' resolv.conf is made of.
    pub(crate) resolv_conf: PathBuf,
    /// The cluster's name servers; none on a node of its own.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The domain of Services and pods.
    pub(crate) cluster_domain: String,
    /// When images are removed.
    pub(crate) image_gc: ImageGcPolicy,
    /// When logs of containers are rotated.
    pub(crate) log_rotation: LogRotationPolicy,
}

impl Node {
    /// Resolves what was given. `host_name` is the name of the machine.
    pub(crate) fn resolve(args: &NodeArgs, host_name: &str) -> Result<Self, ConfigError> {
        let root = absolute("root", args.root.as_deref().unwrap_or(Path::new(DEFAULT_ROOT)))?;
        let state = absolute("state", args.state.as_deref().unwrap_or(Path::new(DEFAULT_STATE)))?;
        let under_root = |below: &str, else_: &str| match args.root {
            Some(_) => root.join(below),
            None => PathBuf::from(else_),
        };
        let given = |flag: &'static str, path: &Option<PathBuf>, default: PathBuf| match path {
            Some(path) => absolute(flag, path),
            None => Ok(default),
        };
        let (pod_cidrs, service_cidrs) = ranges(&args.pod_cidr, &args.service_cidr)?;
        let (runtime_cgroup, kubelet_cgroup) = cgroups(args.cgroup_root.as_deref())?;
        Ok(Self {
            listen: given("listen", &args.listen, state.join("podwright.sock"))?,
            container_runtime_endpoint: None,
            cni_conf_dir: given(
                "cni-conf-dir",
                &args.cni_conf_dir,
                under_root("cni/net.d", "/etc/cni/net.d"),
            )?,
            cni_bin_dirs: bin_dirs(&args.cni_bin_dir)?,
            registry_config_dir: given(
                "registry-config-dir",
                &args.registry_config_dir,
                under_root("certs.d", "/etc/podwright/certs.d"),
            )?,
            registry_auth_files: auth_files(&args.registry_auth_file, args.root.as_deref())?,
            runtime_cgroup,
            kubelet_cgroup,
            pod_cidrs,
            service_cidrs,
            bridge: bridge(args.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE))?,
            name: node_name(args.node_name.as_deref().unwrap_or(host_name))?,
            ips: node_ips(&args.node_ip)?,
            kubelet_dir: under_root("kubelet", "/var/lib/kubelet"),
            pod_logs_dir: under_root("logs/pods", "/var/log/pods"),
            container_logs_dir: under_root("logs/containers", "/var/log/containers"),
            resolv_conf: PathBuf::from(DEFAULT_RESOLV_CONF),
            cluster_dns: Vec::new(),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.to_owned(),
            image_gc: ImageGcPolicy::default(),
            log_rotation: LogRotationPolicy::default(),
            root,
            state,
        })
    }

    /// Resolves what was given on this machine.
    pub(crate) fn here(args: &NodeArgs) -> Result<Self, ConfigError> {
        let mut node = Self::resolve(args, &host_name())?;
        node.resolv_conf = resolv_conf(Path::new(DEFAULT_RESOLV_CONF), Path::new(RESOLVED_RESOLV_CONF));
        Ok(node)
    }

    /// The addresses of the node: those that were given, else the one from which it would reach the world. Asking the
    /// kernel for that sends nothing.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let default = || -> Option<IpAddr> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
            socket.local_addr().ok().map(|address| address.ip())
        };
        if self.ips.is_empty() { default().into_iter().collect() } else { self.ips.clone() }
    }

    /// The first of them.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.addresses().first().copied()
    }

    /// Where the CRI of this node's pods is spoken.
    pub(crate) fn cri_endpoint(&self) -> String {
        let own = || format!("unix://{}", self.listen.display());
        self.container_runtime_endpoint.clone().unwrap_or_else(own)
    }

    /// What the kubelet remembers of this boot's pods.
    pub(crate) fn kubelet_state(&self) -> PathBuf {
        self.state.join("kubelet")
    }

    /// The socket on which the CLI asks a running agent.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.state.join("admin.sock")
    }

    /// What the proxy has allocated to Services.
    pub(crate) fn services_file(&self) -> PathBuf {
        self.root.join("services.json")
    }

    /// There as long as the chains of a cluster's Services are ours.
    pub(crate) fn proxy_mark(&self) -> PathBuf {
        self.state.join("service-proxy")
    }

    /// Results of CNI calls.
    pub(crate) fn cni_cache_dir(&self) -> PathBuf {
        self.root.join("cni/cache")
    }

    /// Images that lie beside the node before it starts; the user's own files.
    pub(crate) fn preloaded_images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Leases, in the form of the host-local plugin.
    pub(crate) fn leases_dir(&self) -> PathBuf {
        self.root.join("networks")
    }
}

/// systemd-resolved's stub listens on the host's loopback, which no pod reaches: where the host uses it, pods get the
/// real servers, as kubeadm sets it up.
fn resolv_conf(host: &Path, resolved: &Path) -> PathBuf {
    let stub = std::fs::read_to_string(host).is_ok_and(|text| {
        let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        servers.into_iter().any(|server| server.trim() == "127.0.0.53")
    });
    if stub && resolved.exists() { resolved.to_owned() } else { host.to_owned() }
}

/// The machine's name, as `hostname` prints it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn absolute(flag: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let fail = |reason| ConfigError::Flag { flag, value: path.display().to_string(), reason };
    let path = std::path::absolute(path).map_err(|_| fail("is not a path"))?;
    if path.parent().is_none() {
        return Err(fail("is the root of the file system"));
    }
    Ok(path)
}

fn bin_dirs(given: &[PathBuf]) -> Result<Vec<PathBuf>, ConfigError> {
    if given.is_empty() {
        return Ok(vec![PathBuf::from("/opt/cni/bin")]);
    }
    given.iter().map(|dir| absolute("cni-bin-dir", dir)).collect()
}

/// As the kubelet finds them when it runs as root; a node in a directory of its own has its own.
fn auth_files(given: &[PathBuf], root: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    match (given, root) {
        ([], None) => Ok(DEFAULT_AUTH_FILES.map(PathBuf::from).to_vec()),
        ([], Some(root)) => Ok(vec![absolute("root", root)?.join("kubelet/config.json")]),
        (given, _) => given.iter().map(|file| absolute("registry-auth-file", file)).collect(),
    }
}

/// At most one of each family. Without IPv4 nothing was tried.
fn node_ips(given: &[IpAddr]) -> Result<Vec<IpAddr>, ConfigError> {
    let value = || given.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let fail = |reason| Err(ConfigError::Flag { flag: "node-ip", value: value(), reason });
    let of_v4 = given.iter().filter(|address| address.is_ipv4()).count();
    match (given.len(), of_v4) {
        (0, _) | (1 | 2, 1) => Ok(given.to_vec()),
        (_, 0) => fail("has no address of IPv4"),
        _ => fail("is more than one address of one family"),
    }
}

/// The ranges of pods and Services: at most one of each family, and both of the same families.
fn ranges(pods: &[IpNet], services: &[IpNet]) -> Result<(Vec<IpNet>, Vec<IpNet>), ConfigError> {
    let pods = checked("pod-cidr", if pods.is_empty() { &[DEFAULT_POD_CIDR] } else { pods })?;
    let default = |pods: &IpNet| if is_v4(pods) { DEFAULT_SERVICE_CIDR } else { DEFAULT_SERVICE_CIDR_V6 };
    let services = match services {
        [] => pods.iter().map(default).collect(),
        given => checked("service-cidr", given)?,
    };
    for service in &services {
        if !pods.iter().any(|pod| is_v4(pod) == is_v4(service)) {
            let reason = "is of a family of which pods have no addresses (--pod-cidr)";
            return Err(ConfigError::Flag { flag: "service-cidr", value: service.to_string(), reason });
        }
    }
    for pod in &pods {
        let overlaps = |service: &&IpNet| pod.contains(&service.addr()) || service.contains(&pod.addr());
        if let Some(service) = services.iter().find(overlaps) {
            return Err(ConfigError::Overlap { pods: *pod, services: *service });
        }
    }
    Ok((pods, services))
}

fn is_v4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}

fn checked(flag: &'static str, given: &[IpNet]) -> Result<Vec<IpNet>, ConfigError> {
    let value = || given.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    let fail = |reason| Err(ConfigError::Flag { flag, value: value(), reason });
    if given.len() > 2 || (given.len() == 2 && is_v4(&given[0]) == is_v4(&given[1])) {
        return fail("is more than one range of one family");
    }
    if given.iter().any(|net| net.max_prefix_len() - net.prefix_len() < 3) {
        return fail("has no room for pods; give a prefix of at most /29, or /125 with IPv6");
    }
    Ok(given.iter().map(IpNet::trunc).collect())
}

fn cgroups(given: Option<&str>) -> Result<(String, String), ConfigError> {
    let Some(given) = given else { return Ok(("/podwright".to_owned(), "/".to_owned())) };
    let path = Path::new(given);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    if !path.is_absolute() || !plain {
        let reason = "is not an absolute cgroup path such as /podwright";
        return Err(ConfigError::Flag { flag: "cgroup-root", value: given.to_owned(), reason });
    }
    match given.trim_end_matches('/') {
        "" => Ok(("/podwright".to_owned(), "/".to_owned())),
        root => Ok((root.to_owned(), root.to_owned())),
    }
}

fn bridge(name: &str) -> Result<String, ConfigError> {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_MAX && name != "." && name != "..";
    if !fits || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        let reason = "is not the name of a network interface (1 to 15 characters, no / : or space)";
        return Err(ConfigError::Flag { flag: "bridge", value: name.to_owned(), reason });
    }
    Ok(name.to_owned())
}

/// RFC 1123: what the API server accepts as the name of a Node.
fn node_name(name: &str) -> Result<String, ConfigError> {
    let name = name.trim().to_ascii_lowercase();
    let label = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        let reason = "is not a DNS name (lower case letters, digits, '-' and '.')";
        return Err(ConfigError::Flag { flag: "node-name", value: name, reason });
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: NodeArgs) -> Node {
        Node::resolve(&args, "Box.Example").expect("resolves")
    }

    fn refused(args: NodeArgs) -> String {
        Node::resolve(&args, "box").expect_err("refused").to_string()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let node = resolve(NodeArgs::default());
        let expect = Node {
            root: "/var/lib/podwright".into(),
            state: "/run/podwright".into(),
            listen: "/run/podwright/podwright.sock".into(),
            container_runtime_endpoint: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            registry_config_dir: "/etc/podwright/certs.d".into(),
            registry_auth_files: vec![
                "/var/lib/kubelet/config.json".into(),
                "/root/.docker/config.json".into(),
                "/.docker/config.json".into(),
            ],
            runtime_cgroup: "/podwright".into(),
            kubelet_cgroup: "/".into(),
            pod_cidrs: vec!["10.85.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            bridge: "podwright0".into(),
            name: "box.example".into(),
            ips: Vec::new(),
            kubelet_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            container_logs_dir: "/var/log/containers".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            image_gc: ImageGcPolicy::default(),
            log_rotation: LogRotationPolicy::default(),
        };
        assert_eq!(node, expect);
    }

    #[test]
    fn every_other_path_derives_from_root_and_state_when_they_are_given() {
        let node =
            resolve(NodeArgs { root: Some("/r".into()), state: Some("/s".into()), ..NodeArgs::default() });
        assert_eq!(node.listen, Path::new("/s/podwright.sock"));
        assert_eq!(node.admin_socket(), Path::new("/s/admin.sock"));
        for path in [
            &node.cni_conf_dir,
            &node.registry_config_dir,
            &node.registry_auth_files[0],
            &node.kubelet_dir,
            &node.pod_logs_dir,
            &node.container_logs_dir,
            &node.services_file(),
            &node.cni_cache_dir(),
            &node.leases_dir(),
        ] {
            assert!(path.starts_with("/r"), "{}", path.display());
        }
    }

    #[test]
    fn a_path_that_is_given_wins_over_the_derived_one() {
        let node = resolve(NodeArgs {
            root: Some("/r".into()),
            listen: Some("/x.sock".into()),
            cni_conf_dir: Some("/etc/cni/net.d".into()),
            ..NodeArgs::default()
        });
        assert_eq!(node.listen, Path::new("/x.sock"));
        assert_eq!(node.cni_conf_dir, Path::new("/etc/cni/net.d"));
    }

    #[test]
    fn a_cgroup_root_holds_both_kubepods_and_the_supervisors() {
        for (given, runtime, kubelet) in
            [("/two/", "/two", "/two"), ("/a/b", "/a/b", "/a/b"), ("/", "/podwright", "/")]
        {
            let node = resolve(NodeArgs { cgroup_root: Some(given.to_owned()), ..NodeArgs::default() });
            assert_eq!((node.runtime_cgroup.as_str(), node.kubelet_cgroup.as_str()), (runtime, kubelet));
        }
    }

    #[test]
    fn bad_values_are_refused_with_flag_and_reason() {
        let cgroup = |value: &str| NodeArgs { cgroup_root: Some(value.into()), ..NodeArgs::default() };
        let bridge = |value: &str| NodeArgs { bridge: Some(value.into()), ..NodeArgs::default() };
        let nets = |value: &str| value.split(',').map(|net| net.parse().unwrap()).collect();
        let pods = |value: &str| NodeArgs { pod_cidr: nets(value), ..NodeArgs::default() };
        let services = |value: &str| NodeArgs { service_cidr: nets(value), ..NodeArgs::default() };
        let ips = |value: &str| NodeArgs {
            node_ip: value.split(',').map(|ip| ip.parse().unwrap()).collect(),
            ..NodeArgs::default()
        };
        for (args, expect) in [
            (cgroup("podwright"), "--cgroup-root \"podwright\" is not an absolute"),
            (cgroup("/a/../b"), "--cgroup-root"),
            (bridge("a-very-long-bridge-name"), "--bridge \"a-very-long-bridge-name\" is not the name"),
            (
                pods("10.1.0.0/16,10.2.0.0/16"),
                "--pod-cidr \"10.1.0.0/16,10.2.0.0/16\" is more than one range",
            ),
            (services("fd00::/112"), "--service-cidr \"fd00::/112\" is of a family of which pods"),
            (ips("192.0.2.1,192.0.2.2"), "--node-ip \"192.0.2.1,192.0.2.2\" is more than one address"),
            (ips("192.0.2.1,fd00::1,fd00::2"), "is more than one address of one family"),
            (ips("fd00::1"), "has no address of IPv4"),
            (pods("10.0.0.0/30"), "no room for pods"),
            (pods("10.96.0.0/12"), "overlap"),
            (NodeArgs { node_name: Some("a_b".into()), ..NodeArgs::default() }, "--node-name"),
            (NodeArgs { root: Some("/".into()), ..NodeArgs::default() }, "--root \"/\" is the root"),
        ] {
            let message = refused(args);
            assert!(message.contains(expect), "{message} / {expect}");
        }
    }

    #[test]
    fn pods_get_the_real_name_servers_where_the_host_has_a_stub() {
        let dir = tempfile::tempdir().unwrap();
        let (host, real) = (dir.path().join("stub"), dir.path().join("real"));
        std::fs::write(&host, "search lan\nnameserver 127.0.0.53\n").unwrap();
        assert_eq!(resolv_conf(&host, &real), host);
        std::fs::write(&real, "nameserver 192.0.2.53\n").unwrap();
        assert_eq!(resolv_conf(&host, &real), real);
        std::fs::write(&host, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(resolv_conf(&host, &real), host);
    }

    #[test]
    fn an_address_range_is_its_network() {
        let node =
            resolve(NodeArgs { pod_cidr: vec!["10.9.8.7/16".parse().unwrap()], ..NodeArgs::default() });
        assert_eq!(node.pod_cidrs, ["10.9.0.0/16".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn services_have_the_families_of_pods() {
        let families = |pods: &str| {
            let pod_cidr = pods.split(',').map(|net| net.parse().unwrap()).collect();
            let node = resolve(NodeArgs { pod_cidr, ..NodeArgs::default() });
            node.service_cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>()
        };
        assert_eq!(families("10.9.0.0/16"), ["10.96.0.0/16"]);
        assert_eq!(families("fd00:85::/64,10.9.0.0/16"), ["fd00:10:96::/112", "10.96.0.0/16"]);
    }
}
