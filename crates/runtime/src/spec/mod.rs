//! From what CRI asks and what the image says to an OCI runtime spec: pure.
//!
//! Follows containerd's CRI plugin (internal/cri/server/container_create_linux.go), so that images and pods behave the same.

mod mounts;
mod process;
mod resources;
mod user;
mod user_namespace;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use cri::v1;
use cri::v1::NamespaceMode;
use cri::v1::security_profile::ProfileType;
use oci::plan::UserPlan;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Mount, Root, Spec};

use crate::devices::Granted;

pub(crate) use process::add_term;
pub(crate) use user::{Accounts, ResolvedUser, resolve as resolve_user};
pub(crate) use user_namespace::user_namespace;

/// Why a container cannot be made as it was asked for: the client's mistake, or something we do not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Something we do not do.
    #[error("{0} is not supported yet")]
    Unsupported(String),
    /// Something that the kernel does not do here.
    #[error("{asked} cannot be enforced: {lacks} is not enabled on the host")]
    Absent {
        /// What was asked for.
        asked: String,
        /// What it needs.
        lacks: &'static str,
    },
}

/// Everything that decides a spec.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The sandbox's id.
    pub(crate) sandbox_id: &'a str,
    /// The container as asked for.
    pub(crate) config: &'a v1::ContainerConfig,
    /// Its sandbox.
    pub(crate) sandbox: &'a v1::PodSandboxConfig,
    /// The image's config.
    pub(crate) image: &'a ImageConfiguration,
    /// Who the process is, looked up in the image.
    pub(crate) user: &'a ResolvedUser,
    /// The supervisor, whose namespaces the container shares.
    pub(crate) supervisor_pid: i32,
    /// Where the pod's user namespace is opened, if it has one.
    pub(crate) user_namespace: Option<PathBuf>,
    /// The process whose pid namespace it shares, where the client names a container (`target_id`).
    pub(crate) target_pid: Option<i32>,
    /// The container's cgroup.
    pub(crate) cgroup: &'a str,
    /// `resolv.conf`, `hosts`, `hostname` and `shm` of the sandbox.
    pub(crate) sandbox_directory: PathBuf,
    /// The container's directory: the root's mount point for readers of config.json.
    pub(crate) directory: PathBuf,
    /// The devices that it asks for.
    pub(crate) devices: &'a [Granted],
    /// What the node has in /dev, for privileged containers; empty for others.
    pub(crate) host_devices: &'a [oci_spec::runtime::LinuxDevice],
    /// The layers of the images that are mounted as volumes, by the name that the mount has.
    pub(crate) image_volumes: &'a BTreeMap<String, Vec<PathBuf>>,
    /// What the sandbox is called by those in it.
    pub(crate) hostname: &'a str,
    /// Whether this machine can limit swap.
    pub(crate) limits_swap: bool,
    /// Whether this machine can limit huge pages.
    pub(crate) limits_huge_pages: bool,
    /// What an ordinary container must not see on this machine.
    pub(crate) masked_paths: &'a [String],
    /// Whether the kernel enforces AppArmor's profiles.
    pub(crate) has_apparmor: bool,
    /// A `Localhost` profile, read and parsed.
    pub(crate) localhost_profile: Option<LinuxSeccomp>,
}

impl Request<'_> {
    fn security(&self) -> v1::LinuxContainerSecurityContext {
        let linux = self.config.linux.as_ref();
        linux.and_then(|linux| linux.security_context.clone()).unwrap_or_default()
    }
}

/// Renders the spec.
///
/// # Errors
/// With the field's name when something is invalid or not supported.
pub(crate) fn render_spec(request: &Request<'_>) -> Result<Spec, SpecError> {
    let security = request.security();
    refuse_unsupported(request, &security)?;
    let ids = pod_ids(request, &security)?;
    let (process, capabilities) = process::render(request, &security)?;
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(request, &security)?))
        .set_resources(Some(resources::render(request, &security)?))
        .set_cgroups_path(Some(PathBuf::from(request.cgroup)))
        .set_devices(resources::devices(request, &security))
        .set_seccomp(seccomp(request, &security, capabilities)?)
        .set_sysctl(None)
        .set_rootfs_propagation(mounts::root_propagation(request.config).map(str::to_owned));
    if let Some(ids) = &ids {
        linux
            .set_uid_mappings(Some(user_namespace::mappings(&ids.uid)))
            .set_gid_mappings(Some(user_namespace::mappings(&ids.gid)));
    }
    let (masked, readonly) = paths(request, &security);
    linux.set_masked_paths(masked).set_readonly_paths(readonly);
    let mut root = Root::default();
    root.set_path(request.directory.join("rootfs")).set_readonly(Some(security.readonly_rootfs));
    let mounts: Vec<Mount> = mounts::render(request, &security)?;
    let mut spec = Spec::default();
    spec.set_version("1.2.0".to_owned())
        .set_process(Some(process))
        .set_root(Some(root))
        .set_hostname(None)
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations(request)))
        .set_linux(Some(linux));
    Ok(spec)
}

fn refuse_unsupported(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let unsupported = |what: &str| Err(SpecError::Unsupported(what.to_owned()));
    if !request.config.cdi_devices.is_empty() {
        return unsupported("CDI devices (cdi_devices)");
    }
    refuse_apparmor(security, request.has_apparmor)?;
    let selinux = security.selinux_options.as_ref();
    if selinux.is_some_and(|options| *options != v1::SeLinuxOption::default()) {
        return unsupported("an SELinux label");
    }
    Ok(())
}

fn refuse_apparmor(
    security: &v1::LinuxContainerSecurityContext,
    has_apparmor: bool,
) -> Result<(), SpecError> {
    let Some(name) = apparmor_profile(security) else { return Ok(()) };
    let asked = format!("the AppArmor profile {name:?}");
    match has_apparmor {
        true => Err(SpecError::Unsupported(asked)),
        false => Err(SpecError::Absent { asked, lacks: "AppArmor" }),
    }
}

/// A profile of the node by its name. Clients before Kubernetes 1.30 say it in words.
fn apparmor_profile(security: &v1::LinuxContainerSecurityContext) -> Option<&str> {
    #[expect(deprecated, reason = "what a client says is not dropped because there is a newer way to say it")]
    let in_words = security.apparmor_profile.strip_prefix("localhost/");
    match &security.apparmor {
        Some(profile) => (profile.profile_type() == ProfileType::Localhost).then_some(&profile.localhost_ref),
        None => in_words,
    }
}

/// The ids of the pod's user namespace, which the container must ask for too.
fn pod_ids(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Option<UserPlan>, SpecError> {
    let own = user_namespace(&security.namespace_options.clone().unwrap_or_default())?;
    if own != user_namespace(&namespace_options(request.sandbox))? {
        let problem = "user namespace config for sandbox is different from container";
        return Err(SpecError::Invalid(problem.into()));
    }
    if own.is_some() != request.user_namespace.is_some() {
        let problem = "user namespace config for sandbox is different from what it was made with";
        return Err(SpecError::Invalid(problem.into()));
    }
    Ok(own)
}

/// Whose namespaces the container is in. Those of the sandbox have a path, as config.json's readers expect; the
/// supervisor's children inherit them.
fn namespaces(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    use LinuxNamespaceType as Type;
    let options = security.namespace_options.clone().unwrap_or_default();
    let namespace = |kind: Type, name: Option<&str>| {
        let mut namespace = LinuxNamespace::default();
        let path = name.map(|name| PathBuf::from(format!("/proc/{}/ns/{name}", request.supervisor_pid)));
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let mut namespaces = vec![namespace(Type::Mount, None)];
    if options.network() != NamespaceMode::Node {
        namespaces.push(namespace(Type::Network, Some("net")));
    }
    if options.ipc() != NamespaceMode::Node {
        namespaces.push(namespace(Type::Ipc, Some("ipc")));
    }
    if !shares_host_uts(request.sandbox) {
        namespaces.push(namespace(Type::Uts, Some("uts")));
    }
    match options.pid() {
        NamespaceMode::Container => namespaces.push(namespace(Type::Pid, None)),
        NamespaceMode::Pod => namespaces.push(namespace(Type::Pid, Some("pid_for_children"))),
        NamespaceMode::Node => {}
        NamespaceMode::Target => {
            let pid = request
                .target_pid
                .ok_or_else(|| SpecError::Invalid("target_id names no container".into()))?;
            let mut target = namespace(Type::Pid, None);
            target.set_path(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))));
            namespaces.push(target);
        }
    }
    if !security.privileged {
        namespaces.push(namespace(Type::Cgroup, None));
    }
    if let Some(path) = &request.user_namespace {
        let mut user = namespace(Type::User, None);
        user.set_path(Some(path.clone()));
        namespaces.push(user);
    }
    Ok(namespaces)
}

/// A pod on the host's network has the host's name.
#[must_use]
pub(crate) fn shares_host_uts(sandbox: &v1::PodSandboxConfig) -> bool {
    namespace_options(sandbox).network() == NamespaceMode::Node
}

/// The sandbox's namespaces as asked for.
#[must_use]
pub(crate) fn namespace_options(sandbox: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    let linux = sandbox.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

fn seccomp(
    request: &Request<'_>,
    security: &v1::LinuxContainerSecurityContext,
    capabilities: u64,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    if security.privileged {
        return Ok(None);
    }
    let Some(profile) = &security.seccomp else { return Ok(None) };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(oci::seccomp::runtime_default(capabilities))),
        // An empty name means a mistake, never "unconfined" (CVE-2023-2431).
        ProfileType::Localhost if profile.localhost_ref.is_empty() => {
            Err(SpecError::Invalid("seccomp profile Localhost without a localhost_ref".into()))
        }
        ProfileType::Localhost => Ok(request.localhost_profile.clone()),
    }
}

type Paths = (Option<Vec<String>>, Option<Vec<String>>);

/// What it must not see or change; where the client does not say, what no ordinary container may.
fn paths(request: &Request<'_>, security: &v1::LinuxContainerSecurityContext) -> Paths {
    if security.privileged {
        return (None, None);
    }
    let or_default = |given: &[String], default: Vec<String>| {
        Some(if given.is_empty() { default } else { given.to_vec() })
    };
    let masked = or_default(&security.masked_paths, request.masked_paths.to_vec());
    let readonly =
        or_default(&security.readonly_paths, host::proc_paths::READONLY.map(str::to_owned).to_vec());
    (masked, readonly)
}

/// The keys that tools expect to find in a config.json.
fn annotations(request: &Request<'_>) -> HashMap<String, String> {
    let metadata = request.sandbox.metadata.clone().unwrap_or_default();
    let name = request.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let image = request.config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    [
        ("io.kubernetes.cri.container-type", "container".to_owned()),
        ("io.kubernetes.cri.container-name", name),
        ("io.kubernetes.cri.image-name", image),
        ("io.kubernetes.cri.sandbox-id", request.sandbox_id.to_owned()),
        ("io.kubernetes.cri.sandbox-name", metadata.name),
        ("io.kubernetes.cri.sandbox-namespace", metadata.namespace),
        ("io.kubernetes.cri.sandbox-uid", metadata.uid),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests;
