//! The container's root: everything is mounted by descriptor below a root that only this process's mount namespace has.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use host::cgroup::{Cgroup, Version};
use host::mount::{self, Depth, MountAttributes, Parameter, Upper};
use host::path::{self, Leaf};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::dev::Nodes;
use super::report::{Failure, Step};
use super::user::{MountNamespaces, Prepared};
use super::{Stdio, copy_up, dev, procfs, terminal};
use crate::plan::{LaunchPlan, MountKind, MountPlan, Rootfs};

/// Writes settings to a procfs.
type Tune<'a> = dyn Fn(&OwnedFd) -> Result<(), Failure> + 'a;

/// Mounts everything, masks what is to be masked; gives the topmost directory, ready to be entered. `tune` writes to a procfs of the
/// container's pid namespace that is attached nowhere yet.
pub(super) fn build(parts: &Parts<'_>, stdio: &Stdio, tune: &Tune<'_>) -> Result<Built, Failure> {
    let Parts { plan, cgroup, prepared, mount_ids } = *parts;
    let host_root = open_host("/")?;
    let host_null = open_host_null()?;
    let copy = |fd: &OwnedFd| fd.try_clone().step(|| "copy a descriptor".to_owned());
    let (sources, root) = match prepared {
        Some(prepared) => {
            let sources = prepared.sources.iter().map(|source| source.as_ref().map(copy).transpose());
            (sources.collect::<Result<_, _>>()?, Tree::Detached(copy(&prepared.root)?))
        }
        None => (clone_sources(&plan.mounts, mount_ids)?, root_tree(&plan.rootfs)?),
    };
    // Nothing that happens below may show on the host. Sources keep their peers: they were cloned before.
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    mount::set_attributes(&host_root, Depth::Recursive, private).step(|| "make mounts private".to_owned())?;
    let root = match root {
        Tree::Detached(root) => {
            mount::set_attributes(&root, Depth::Recursive, private)
                .step(|| "make the root private".to_owned())?;
            mount::attach(&root, root_point(plan)?.as_ref().unwrap_or(&host_root))
                .step(|| "attach the root".to_owned())?;
            root
        }
        Tree::Attached(root) => root,
    };
    let scratch = scratch(&plan.rootfs);
    let mut work =
        Work { root: &root, plan, tune: Some(tune), read_only_later: Vec::new(), cgroup, prepared, scratch };
    if !plan.mounts.iter().any(|mount| mount.target == Path::new("/dev")) {
        work.default_dev()?;
    }
    for (planned, source) in plan.mounts.iter().zip(sources) {
        work.mount(planned, source)?;
    }
    let Work { tune, read_only_later, .. } = work;
    if let Some(tune) = tune {
        // The container sees no procfs of its own; the settings need one all the same.
        tune(&mount::new_filesystem("proc", "proc", &[], 0).step(|| "mount a procfs".to_owned())?)?;
    }
    match prepared {
        Some(prepared) => dev::bind_nodes(&root, &plan.devices, &prepared.nodes)?,
        None => dev::make_nodes(&root, &plan.devices)?,
    }
    let terminal = match stdio {
        Stdio::Streams { .. } => None,
        Stdio::Terminal { console } => {
            let terminal = terminal::open(&root, console, &plan.process)?;
            bind_console(&root, &terminal)?;
            Some(terminal)
        }
    };
    protect(&root, &host_null, plan)?;
    // Where it does not exist it is made, as runc does.
    path::make_in_root(&root, &plan.process.cwd, Leaf::Directory)
        .step(|| format!("make the working directory {:?}", plan.process.cwd))?;
    for (target, mount) in read_only_later {
        mount::set_attributes(&mount, Depth::One, read_only())
            .step(|| format!("make {} read-only", target.display()))?;
    }
    Ok(Built { root, terminal })
}

/// With hooks the root is attached where its path says, so that they find it there; else anywhere will do.
fn root_point(plan: &LaunchPlan) -> Result<Option<OwnedFd>, Failure> {
    let (Rootfs::Directory(directory), Some(_), None) = (&plan.rootfs, &plan.hooks, &plan.user) else {
        // In a user namespace the way to the directory may be closed, and mounts there would not be the hook's to make.
        return Ok(None);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let point = rustix::fs::open(directory, flags, Mode::empty());
    point.step(|| format!("open the root {}", directory.display())).map(Some)
}

/// What a root is made of.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a LaunchPlan,
    pub(super) cgroup: Option<&'a Cgroup>,
    /// With a user namespace only.
    pub(super) prepared: Option<&'a Prepared>,
    pub(super) mount_ids: &'a MountNamespaces,
}

/// A directory of the host that is not needed any more once the root is there.
pub(super) fn scratch(rootfs: &Rootfs) -> &Path {
    match rootfs {
        Rootfs::Directory(directory) => directory,
        Rootfs::Overlay { work, .. } => work,
    }
}

/// A root that is ready to be entered.
pub(super) struct Built {
    pub(super) root: OwnedFd,
    /// The container's side of its terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// The terminal is also /dev/console: the open one, not what its name in /dev/pts leads to (CVE-2025-52565).
fn bind_console(root: &OwnedFd, terminal: &OwnedFd) -> Result<(), Failure> {
    let step = || "bind the terminal to /dev/console".to_owned();
    let target = path::make_in_root(root, Path::new("/dev/console"), Leaf::File).step(step)?;
    let tree = mount::clone_fd(terminal, Depth::One).step(step)?;
    mount::attach(&tree, &target).step(step)
}

/// Makes it the root of this process and lets go of the host's.
pub(super) fn enter(root: &OwnedFd, plan: &LaunchPlan) -> Result<(), Failure> {
    if plan.readonly_rootfs {
        mount::set_attributes(root, Depth::One, read_only()).step(|| "make the root read-only".to_owned())?;
    }
    rustix::process::fchdir(root).step(|| "enter the root".to_owned())?;
    mount::pivot_to_working_directory().step(|| "pivot_root".to_owned())?;
    if plan.root_propagation != libc::MS_PRIVATE {
        let attributes = MountAttributes { propagation: plan.root_propagation, ..MountAttributes::default() };
        mount::set_attributes(root, Depth::One, attributes)
            .step(|| "set the propagation of the root".to_owned())?;
    }
    Ok(())
}

fn read_only() -> MountAttributes {
    MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() }
}

fn open_host(path: &str) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .step(|| format!("open {path} of the host"))
}

/// The host's /dev/null, which must be what its name says (CVE-2025-31133).
fn open_host_null() -> Result<OwnedFd, Failure> {
    let null = open_host("/dev/null")?;
    let stat = rustix::fs::fstat(&null).step(|| "look at /dev/null".to_owned())?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        return Ok(null);
    }
    Err(Failure::step(
        "/dev/null of the host is no null device",
        &std::io::Error::from_raw_os_error(libc::ENODEV),
    ))
}

/// What is bound, detached, with the ids that it is to show.
pub(super) fn clone_sources(
    mounts: &[MountPlan],
    mount_ids: &MountNamespaces,
) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let clone = |(mount, ids): (&MountPlan, &Option<Rc<OwnedFd>>)| match &mount.kind {
        MountKind::Bind { source, recursive } => {
            let depth = if *recursive { Depth::Recursive } else { Depth::One };
            let tree = mount::clone_path(source, depth).step(|| format!("bind {}", source.display()))?;
            if let (Some(wanted), Some(namespace)) = (&mount.ids, ids) {
                let depth = if wanted.recursive { Depth::Recursive } else { Depth::One };
                mount::map_ids(&tree, depth, &**namespace)
                    .step(|| format!("map the ids of {} (can its file system do it?)", source.display()))?;
            }
            Ok(Some(tree))
        }
        MountKind::New { .. } | MountKind::Layers { .. } | MountKind::Cgroup => Ok(None),
    };
    mounts.iter().zip(mount_ids).map(clone).collect()
}

pub(super) enum Tree {
    Detached(OwnedFd),
    Attached(OwnedFd),
}

pub(super) fn root_tree(rootfs: &Rootfs) -> Result<Tree, Failure> {
    match rootfs {
        Rootfs::Directory(directory) => mount::clone_path(directory, Depth::Recursive)
            .step(|| format!("bind the root {}", directory.display()))
            .map(Tree::Detached),
        Rootfs::Overlay { lower, upper, work } => {
            let step = || format!("mount an overlay on {}", upper.display());
            if let Some(overlay) = mount::overlay(lower, Some(Upper { directory: upper, work })).step(step)? {
                return Ok(Tree::Detached(overlay));
            }
            // An older kernel mounts only on a path. Any directory will do, as nobody else sees this namespace; but it must be private first.
            let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
            mount::set_attributes(open_host("/")?, Depth::Recursive, private).step(step)?;
            mount::overlay_at(lower, Some(Upper { directory: upper, work }), upper).step(step)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, upper, flags, Mode::empty()).step(step).map(Tree::Attached)
        }
    }
}

/// What accumulates while mounting.
struct Work<'a> {
    root: &'a OwnedFd,
    plan: &'a LaunchPlan,
    /// Taken when it has been done.
    tune: Option<&'a Tune<'a>>,
    /// File systems in which mount points may still have to be made.
    read_only_later: Vec<(PathBuf, OwnedFd)>,
    cgroup: Option<&'a Cgroup>,
    prepared: Option<&'a Prepared>,
    /// A directory of the host that nothing here needs any more.
    scratch: &'a Path,
}

impl Work<'_> {
    fn default_dev(&mut self) -> Result<(), Failure> {
        let step = || "mount /dev".to_owned();
        let parameters = [Parameter::String("mode", "755"), Parameter::String("size", "65536k")];
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME;
        let tmpfs = mount::new_filesystem("tmpfs", "tmpfs", &parameters, attributes).step(step)?;
        dev::fill(&tmpfs, self.nodes())?;
        let target = path::make_in_root(self.root, Path::new("/dev"), Leaf::Directory).step(step)?;
        mount::attach(&tmpfs, &target).step(step)?;
        self.bind_devices(&tmpfs)
    }

    fn nodes(&self) -> Nodes {
        if self.prepared.is_some() { Nodes::Bound } else { Nodes::Made }
    }

    fn bind_devices(&self, dev: &OwnedFd) -> Result<(), Failure> {
        self.prepared.map_or(Ok(()), |prepared| dev::bind(dev, &prepared.devices))
    }

    fn mount(&mut self, plan: &MountPlan, source: Option<OwnedFd>) -> Result<(), Failure> {
        match &plan.kind {
            MountKind::Bind { .. } => match source {
                Some(source) => self.bind(plan, &source),
                None => Ok(()),
            },
            MountKind::New { filesystem, source, options, copy_up } => {
                self.new_filesystem(plan, (filesystem, source), options, *copy_up)
            }
            MountKind::Layers { .. } => match source {
                Some(source) => self.bind(plan, &source),
                None => self.bind(plan, &image_tree(plan, self.scratch)?),
            },
            MountKind::Cgroup => self.cgroup(plan),
        }
    }

    fn bind(&self, plan: &MountPlan, source: &OwnedFd) -> Result<(), Failure> {
        let step = || format!("bind to {}", plan.target.display());
        let leaf = if path::file_type(source).step(step)? == FileType::Directory {
            Leaf::Directory
        } else {
            Leaf::File
        };
        let target = path::make_in_root(self.root, &plan.target, leaf).step(step)?;
        procfs::check(&plan.target, &target, source)?;
        self.apply(plan, source)?;
        mount::attach(source, &target).step(step)
    }

    fn new_filesystem(
        &mut self,
        plan: &MountPlan,
        (filesystem, source): (&str, &str),
        options: &[(String, Option<String>)],
        copy_up: bool,
    ) -> Result<(), Failure> {
        let step = || format!("mount {filesystem} on {}", plan.target.display());
        if matches!(filesystem, "proc" | "sysfs")
            && path::is_symlink_in_root(self.root, &plan.target).step(step)?
        {
            // CVE-2019-19921: what should be protected there would be somewhere else.
            let why = format!("{} must be an ordinary directory, not a symlink", plan.target.display());
            return Err(Failure::step(why, &std::io::Error::from_raw_os_error(libc::ELOOP)));
        }
        let parameters: Vec<Parameter<'_>> = options
            .iter()
            .map(|(name, value)| match value {
                Some(value) => Parameter::String(name, value),
                None => Parameter::Flag(name),
            })
            .collect();
        let later = filesystem == "tmpfs" && plan.set & libc::MOUNT_ATTR_RDONLY != 0;
        let attributes = if later { plan.set & !libc::MOUNT_ATTR_RDONLY } else { plan.set };
        let new = mount::new_filesystem(filesystem, source, &parameters, attributes).step(step)?;
        let is_dev = plan.target == Path::new("/dev") && filesystem == "tmpfs";
        if is_dev {
            dev::fill(&new, self.nodes())?;
        }
        if filesystem == "proc"
            && let Some(tune) = self.tune.take()
        {
            tune(&new)?;
        }
        let target = path::make_in_root(self.root, &plan.target, Leaf::Directory).step(step)?;
        procfs::check(&plan.target, &target, &new)?;
        if copy_up {
            let step = || format!("copy {} into its tmpfs", plan.target.display());
            copy_up::contents(&target, &new).step(step)?;
            if !options.iter().any(|(name, _)| name == "mode") {
                copy_up::attributes(&target, &new).step(step)?;
            }
        }
        self.propagate(plan, &new)?;
        mount::attach(&new, &target).step(step)?;
        if is_dev {
            self.bind_devices(&new)?;
        }
        if later {
            self.read_only_later.push((plan.target.clone(), new));
        }
        Ok(())
    }

    /// The container's own directory of each hierarchy it was put into. In a cgroup namespace of its own that is each hierarchy's root;
    /// without one the v2 tree is the node's, as a mount of cgroup2 would be: /proc/self/cgroup names a directory of it.
    fn cgroup(&mut self, plan: &MountPlan) -> Result<(), Failure> {
        let step = || format!("mount cgroups on {}", plan.target.display());
        let target = path::make_in_root(self.root, &plan.target, Leaf::Directory).step(step)?;
        let Some(cgroup) = self.cgroup else {
            let why = "a cgroup mount needs linux.cgroupsPath";
            return Err(Failure::step(why, &std::io::Error::from_raw_os_error(libc::EINVAL)));
        };
        if cgroup.version() == Version::V2 {
            let Some((_, directory)) = cgroup.directories().next() else { return Ok(()) };
            let shown =
                if self.plan.has_cgroup_namespace() { directory } else { Path::new("/sys/fs/cgroup") };
            let tree = mount::clone_path(shown, Depth::One).step(step)?;
            procfs::check(&plan.target, &target, &tree)?;
            self.apply(plan, &tree)?;
            return mount::attach(&tree, &target).step(step);
        }
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let tmpfs = mount::new_filesystem("tmpfs", "tmpfs", &[Parameter::String("mode", "755")], attributes)
            .step(step)?;
        procfs::check(&plan.target, &target, &tmpfs)?;
        let hierarchies: Vec<(&str, &Path)> =
            cgroup.directories().filter(|(hierarchy, _)| *hierarchy != "unified").collect();
        for (hierarchy, _) in &hierarchies {
            rustix::fs::mkdirat(&tmpfs, *hierarchy, Mode::from_raw_mode(0o755)).step(step)?;
            for name in hierarchy.split(',').filter(|name| name != hierarchy) {
                rustix::fs::symlinkat(*hierarchy, &tmpfs, name).step(step)?;
            }
        }
        mount::attach(&tmpfs, &target).step(step)?;
        for (hierarchy, directory) in hierarchies {
            let tree = mount::clone_path(directory, Depth::One).step(step)?;
            self.apply(plan, &tree)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let point = rustix::fs::openat(&tmpfs, hierarchy, flags, Mode::empty()).step(step)?;
            mount::attach(&tree, &point).step(step)?;
        }
        if plan.set & libc::MOUNT_ATTR_RDONLY != 0 {
            self.read_only_later.push((plan.target.clone(), tmpfs));
        }
        Ok(())
    }

    /// Gives a detached tree its attributes; what the source has set stays set unless the plan clears it.
    fn apply(&self, plan: &MountPlan, tree: &OwnedFd) -> Result<(), Failure> {
        let step = || format!("set the options of {}", plan.target.display());
        let one = MountAttributes { set: plan.set, clear: plan.clear, ..MountAttributes::default() };
        if (one.set, one.clear) != (0, 0) {
            mount::set_attributes(tree, Depth::One, one).step(step)?;
        }
        let all = MountAttributes {
            set: plan.set_recursive,
            clear: plan.clear_recursive,
            ..MountAttributes::default()
        };
        if (all.set, all.clear) != (0, 0) {
            mount::set_attributes(tree, Depth::Recursive, all).step(step)?;
        }
        self.propagate(plan, tree)
    }

    fn propagate(&self, plan: &MountPlan, tree: &OwnedFd) -> Result<(), Failure> {
        let step = || format!("set the propagation of {}", plan.target.display());
        let is_bind = matches!(plan.kind, MountKind::Bind { .. });
        let set = |propagation, depth| {
            let attributes = MountAttributes { propagation, ..MountAttributes::default() };
            mount::set_attributes(tree, depth, attributes).step(step)
        };
        match (plan.propagation, plan.propagation_recursive) {
            // Nothing said: nothing comes in and nothing goes out.
            (0, _) if is_bind => set(libc::MS_PRIVATE, Depth::Recursive),
            (0, _) => Ok(()),
            (propagation, true) => set(propagation, Depth::Recursive),
            (propagation, false) => set(propagation, Depth::One),
        }
    }
}

/// An image: assembled where only this mount namespace sees it, then the whole or a part of it. The image's links are resolved inside
/// the image.
pub(super) fn image_tree(plan: &MountPlan, scratch: &Path) -> Result<OwnedFd, Failure> {
    let MountKind::Layers { lower, sub_path } = &plan.kind else {
        return Err(Failure::step("mount an image", &std::io::Error::from_raw_os_error(libc::EINVAL)));
    };
    let step = || format!("mount an image on {}", plan.target.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).step(step);
    let whole = match lower.as_slice() {
        [only] => open(only)?,
        _ => match mount::overlay(lower, None).step(step)? {
            Some(overlay) => {
                mount::attach(&overlay, open(scratch)?).step(step)?;
                overlay
            }
            None => {
                mount::overlay_at(lower, None, scratch).step(step)?;
                open(scratch)?
            }
        },
    };
    let shown = match sub_path {
        Some(part) => path::open_in_root(&whole, part, OFlags::PATH)
            .step(|| format!("find {} in the image for {}", part.display(), plan.target.display()))?,
        None => whole,
    };
    mount::clone_fd(&shown, Depth::One).step(step)
}

/// Read-only and masked paths. Both are made from what is there now, below a root that nobody else can change.
fn protect(root: &OwnedFd, host_null: &OwnedFd, plan: &LaunchPlan) -> Result<(), Failure> {
    for name in &plan.readonly_paths {
        let step = || format!("make {name} read-only");
        let Some(target) = open_if_there(root, name)? else { continue };
        let tree = mount::clone_fd(&target, Depth::Recursive).step(step)?;
        mount::set_attributes(&tree, Depth::Recursive, read_only()).step(step)?;
        mount::attach(&tree, &target).step(step)?;
    }
    let mut empty: Option<OwnedFd> = None;
    for name in &plan.masked_paths {
        let step = || format!("mask {name}");
        let Some(target) = open_if_there(root, name)? else { continue };
        if path::file_type(&target).step(step)? != FileType::Directory {
            let null = mount::clone_fd(host_null, Depth::One).step(step)?;
            mount::attach(&null, &target).step(step)?;
            continue;
        }
        // One empty file system serves all of them.
        let new = match &empty {
            Some(first) => mount::clone_fd(first, Depth::One).step(step)?,
            None => mount::new_filesystem(
                "tmpfs",
                "tmpfs",
                &[Parameter::String("nr_inodes", "1")],
                libc::MOUNT_ATTR_RDONLY,
            )
            .step(step)?,
        };
        mount::attach(new.as_fd(), &target).step(step)?;
        empty.get_or_insert(new);
    }
    Ok(())
}

fn open_if_there(root: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, Failure> {
    match path::open_in_root(root, Path::new(name), OFlags::PATH) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(Failure::step(format!("open {name}"), &error)),
    }
}
