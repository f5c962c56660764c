//! The command line: commands, flags and their help. What the flags mean together is decided in `node`.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;

use crate::config::{GoDuration, KubeletFlags};

/// Turns this Linux machine into a Kubernetes node: kubelet, container runtime (CRI v1), CNI and service proxy.
#[derive(Debug, Parser)]
#[command(name = "podwright", version, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How much is logged, on stderr.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Log more: -v branches taken, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Log at this level instead (RUST_LOG gives a finer choice)
    #[arg(long, value_enum, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
}

/// The levels of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Everything podwright can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the pods and Services of manifest files on this machine, and the CRI socket
    Run(RunArgs),
    /// Make this machine a node of a cluster with a bootstrap token, then run the agent (kubeadm join's flags)
    Join(JoinArgs),
    /// Run this machine as a node of the cluster that a kubeconfig names
    Agent(AgentArgs),
    /// Serve the container runtime interface (CRI v1) alone, for crictl or another kubelet
    Runtime(RuntimeArgs),
    /// Start a node in a network of its own, run three web pods behind a Service, show that it works
    Demo(DemoArgs),
    /// Show the node, its pods, Services and endpoints
    Status(StatusArgs),
    /// Stop every pod and remove every trace of the node
    Reset(ResetArgs),
    /// Import, pull, list and remove images
    Image(ImageArgs),
    /// Run containers from OCI bundles, with runc's command line: create, start, run, state, exec, kill, delete and more
    Oci {
        /// As runc takes them; `podwright oci --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Print the version
    Version,
    /// Answer HTTP requests with the name of this pod (the built-in demo image)
    #[command(hide = true)]
    Web(WebArgs),
}

/// What every command that touches a node's state takes. A path that is not given derives from `--root` or
/// `--state` where that is given, and else is the one that Kubernetes users know.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// Where images, snapshots and leases are kept [default: /var/lib/podwright]. Archives in ROOT/images (tar, also .gz or .zst) are
    /// imported at each start, before any pod
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where the records of what runs are kept until the next boot [default: /run/podwright]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The CRI socket [default: STATE/podwright.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) listen: Option<PathBuf>,
    /// CNI configuration files [default: /etc/cni/net.d, with --root ROOT/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// CNI plugin programs; may be repeated [default: /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_bin_dir: Vec<PathBuf>,
    /// A certs.d tree of hosts.toml files [default: /etc/podwright/certs.d, with --root ROOT/certs.d]
    #[arg(long, value_name = "DIR")]
    pub(crate) registry_config_dir: Option<PathBuf>,
    /// A docker config.json with logins for pulls that bring none; may be repeated. Those for the image are tried in turn, the one
    /// with the longest name first [default: where the kubelet looks: /var/lib/kubelet/config.json, /root/.docker/config.json,
    /// /.docker/config.json; with --root ROOT/kubelet/config.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_auth_file: Vec<PathBuf>,
    /// The cgroup below which everything of this node lives [default: /; the runtime's own: /podwright]
    #[arg(long, value_name = "CGROUP")]
    pub(crate) cgroup_root: Option<String>,
    /// The addresses that pods get; one range, or one of each family: 10.85.0.0/16,fd00:85::/64 [default: 10.85.0.0/16]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) pod_cidr: Vec<IpNet>,
    /// The bridge that pods are attached to [default: podwright0]
    #[arg(long, value_name = "NAME")]
    pub(crate) bridge: Option<String>,
    /// The addresses that Services get, of the families that pods have [default: 10.96.0.0/16, fd00:10:96::/112]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cidr: Vec<IpNet>,
    /// The name of this node [default: the host's name, in lower case]
    #[arg(long, value_name = "NAME", alias = "hostname-override")]
    pub(crate) node_name: Option<String>,
    /// The address of this node as pods report it; one, or one of each family: 192.0.2.7,2001:db8::7 [default: the source address
    /// of the default route]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub(crate) node_ip: Vec<IpAddr>,
}

/// `podwright run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A manifest (YAML or JSON) or a directory of them; may be repeated; changes take effect at once
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", required = true, num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// A KubeletConfiguration file (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `podwright agent`.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// How to reach the API server, and as whom
    #[arg(long, value_name = "FILE", default_value = "/etc/kubernetes/kubelet.conf")]
    pub(crate) kubeconfig: PathBuf,
    /// Whose credentials ask for the node's certificate while the kubeconfig has no valid one
    #[arg(long, value_name = "FILE")]
    pub(crate) bootstrap_kubeconfig: Option<PathBuf>,
    /// A KubeletConfiguration file (kubelet.config.k8s.io/v1beta1); for join, a JoinConfiguration (kubeadm.k8s.io/v1beta4)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Who connects pods: CNI configuration files that the cluster brings, or our own bridge and routes
    #[arg(long, value_enum, value_name = "WHO", default_value = "cni")]
    pub(crate) pod_network: PodNetwork,
    /// How the built-in network reaches other nodes' pods: routes, which need nodes on one network; vxlan; or auto: routes where
    /// they work, else VXLAN (UDP 8472). The same on every node
    #[arg(long, value_name = "HOW", default_value_t)]
    pub(crate) pod_network_backend: podnet::Backend,
    /// Whether to serve Services: on, off, or auto: on, unless a kube-proxy pod runs on the node
    #[arg(long, value_name = "WHEN", default_value_t)]
    pub(crate) proxy: proxy::Mode,
    /// Serve the addresses in Services' spec.externalIPs too: whoever may write a Service can then take any address
    /// (CVE-2020-8554)
    #[arg(long)]
    pub(crate) proxy_external_ips: bool,
    /// The CRI socket of another runtime that is to run the pods, such as unix:///run/containerd/containerd.sock
    /// [default: our own runtime]
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) container_runtime_endpoint: Option<String>,
    /// Labels of the node, as KEY=VALUE with commas between
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    pub(crate) node_labels: Vec<(String, String)>,
    /// Taints that the node registers with, as KEY[=VALUE]:EFFECT with commas between; they replace registerWithTaints
    #[arg(long, value_name = "TAINTS", value_delimiter = ',', value_parser = taint)]
    pub(crate) register_with_taints: Vec<Taint>,
    #[command(flatten)]
    pub(crate) kubelet: KubeletFlags,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// The values of `--pod-network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PodNetwork {
    /// The node is ready once there is a configuration file in the CNI directory, as with a kubelet
    Cni,
    /// Our bridge with the range that the cluster gives the node
    Builtin,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is no label such as pool=edge"))
}

fn taint(text: &str) -> Result<Taint, String> {
    let fault = || format!("{text:?} is no taint such as pool=edge:NoSchedule");
    let (name, effect) = text.rsplit_once(':').ok_or_else(fault)?;
    let (key, value) = name.split_once('=').map_or((name, None), |(key, value)| (key, Some(value)));
    if key.is_empty() || !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(fault());
    }
    Ok(Taint {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect: effect.to_owned(),
        time_added: None,
    })
}

/// `podwright join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Where an API server of the cluster is
    #[arg(value_name = "HOST:PORT")]
    pub(crate) server: Option<String>,
    /// A bootstrap token, as `kubeadm token create` prints it
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// The SHA-256 of the public key of the cluster's CA, as sha256:HEX; one of several may match
    #[arg(long, value_name = "HASH", value_delimiter = ',')]
    pub(crate) discovery_token_ca_cert_hash: Vec<String>,
    /// Believe every cluster that knows the token
    #[arg(long)]
    pub(crate) discovery_token_unsafe_skip_ca_verification: bool,
    /// A kubeconfig file that tells where the cluster is and whom it trusts, in place of HOST:PORT and hash
    #[arg(long, value_name = "FILE")]
    pub(crate) discovery_file: Option<PathBuf>,
    /// How long to try to find the cluster, such as 5m
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub(crate) discovery_timeout: GoDuration,
    /// Install and start podwright.service, in place of running the agent in this process
    #[arg(long)]
    pub(crate) systemd: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

/// `podwright runtime`.
#[derive(Debug, Args)]
pub(crate) struct RuntimeArgs {
    /// A configuration file of ours, in TOML; flags win over it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `podwright demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave when everything was shown; the exit code tells whether it all worked
    #[arg(long)]
    pub(crate) once: bool,
    /// Run this manifest instead of the one inside (it may use the image podwright.local/web:1)
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `podwright status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t = StatusFormat::Table)]
    pub(crate) output: StatusFormat,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// The forms of `podwright status -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
    /// For people
    Table,
    /// For people with wide terminals
    Wide,
    /// A v1 List
    Json,
    /// A v1 List
    Yaml,
}

/// `podwright reset`.
#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// Stop a running agent first; remove cgroups and rules also where there is neither root nor state
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep the images for the next start
    #[arg(long)]
    pub(crate) keep_images: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// `podwright image`.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// What can be done with images. A running agent is asked; without one its files are worked on.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import an OCI layout (a directory, or a tar of one) or an archive of `docker save`
    Import {
        /// The directory, or the tar file: plain, gzip or zstd
        path: PathBuf,
        /// The name it gets, also where it has one
        #[arg(long)]
        name: Option<String>,
        /// Keep it when the disk gets full and nobody uses it
        #[arg(long)]
        pin: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Pull an image from its registry, or the mirror that hosts.toml names
    Pull {
        /// For example docker.io/library/busybox:1.36
        reference: String,
        /// USER:PASSWORD for the registry
        #[arg(long, env = "PODWRIGHT_REGISTRY_CREDENTIALS", hide_env_values = true)]
        creds: Option<String>,
        /// A config.json of docker or auth.json of podman with the password [default: the first there is of $REGISTRY_AUTH_FILE,
        /// $XDG_RUNTIME_DIR/containers/auth.json, $DOCKER_CONFIG/config.json, ~/.docker/config.json]
        #[arg(long, value_name = "FILE")]
        authfile: Option<PathBuf>,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// List images
    Ls {
        /// How to show them
        #[arg(short, long, value_enum, default_value_t = ImageFormat::Table)]
        output: ImageFormat,
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Remove images, with all their names
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// The forms of `podwright image ls -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// For people
    Table,
    /// A JSON list
    Json,
}

/// `podwright web`.
#[derive(Debug, Args)]
pub(crate) struct WebArgs {
    /// The port to answer on
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_several_files_in_every_spelling() {
        for line in [
            "podwright run -f a.yaml -f dir",
            "podwright run -f a.yaml dir",
            "podwright run --filename a.yaml dir",
        ] {
            let Command::Run(args) = parse(line).expect(line).command else { panic!("{line}") };
            assert_eq!(args.files, [PathBuf::from("a.yaml"), PathBuf::from("dir")], "{line}");
        }
    }

    #[test]
    fn every_long_running_command_takes_the_flags_of_the_node() {
        let flags = "--root /r --state /s --listen /l --cni-conf-dir /c --cni-bin-dir /b --registry-config-dir /g \
                     --registry-auth-file /a --cgroup-root /p --pod-cidr 10.1.0.0/16,fd01::/64 --bridge br0";
        for command in ["run -f x", "runtime", "status", "reset", "image ls"] {
            parse(&format!("podwright {command} {flags}")).expect(command);
        }
    }

    #[test]
    fn wrong_values_are_refused_with_the_flag_named() {
        for (line, expect) in [
            ("podwright runtime --pod-cidr 10.1.0.0", "--pod-cidr"),
            ("podwright status -o xml", "--output"),
            ("podwright run", "--filename"),
            ("podwright runtime --rooot /r", "--rooot"),
            ("podwright image rm", "IMAGES"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(expect), "{line}: {error}");
        }
    }
}
