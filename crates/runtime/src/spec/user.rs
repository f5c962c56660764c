//! Who a container's process is: from the client's and the image's words to numbers, by the image's own /etc/passwd.
//!
//! Numbers above 2^31 would wrap to root somewhere (CVE-2024-40635): they are refused.

use std::path::{Path, PathBuf};

use cri::v1;
use host::path::open_in_root;
use rustix::fs::{FileType, OFlags};

use super::SpecError;

/// A user as the process gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvedUser {
    /// Its id.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Its further groups, the first one too, in order.
    pub(crate) additional_gids: Vec<u32>,
    /// Its home directory.
    pub(crate) home: String,
}

/// `/etc/passwd` and `/etc/group` of an image, as far as they exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both from an image's layers, the top one first, never leaving a layer; what an upper layer has removed is not there. A
    /// file of more than 4 MiB counts as none.
    #[must_use]
    pub(crate) fn read(lower: &[PathBuf]) -> Self {
        let read = |name: &str| {
            let found = lower.iter().find_map(|layer| match look(layer, name) {
                Looked::Found(text) => Some(text),
                Looked::Hidden => Some(String::new()),
                Looked::Absent => None,
            });
            found.unwrap_or_default()
        };
        Self { passwd: read("passwd"), group: read("group") }
    }

    fn passwd(&self) -> impl Iterator<Item = Vec<&str>> {
        self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4)
    }

    fn group(&self) -> impl Iterator<Item = Vec<&str>> {
        self.group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3)
    }
}

/// What one layer says of a file in /etc.
enum Looked {
    Found(String),
    /// It is removed here: layers below do not count.
    Hidden,
    Absent,
}

fn look(layer: &Path, name: &str) -> Looked {
    let Ok(root) = std::fs::File::open(layer) else { return Looked::Absent };
    let file = Path::new("etc").join(name);
    if [Path::new("etc"), &file].iter().any(|path| is_whiteout(&root, path)) {
        return Looked::Hidden;
    }
    match read_in(&root, &file) {
        Some(text) => Looked::Found(text),
        None if is_opaque(&root, Path::new("etc")) => Looked::Hidden,
        None => Looked::Absent,
    }
}

/// As overlay has it: a character device 0:0.
fn is_whiteout(root: &std::fs::File, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let stat = open_in_root(root, path, flags).ok().and_then(|file| rustix::fs::fstat(file).ok());
    stat.is_some_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    })
}

fn is_opaque(root: &std::fs::File, path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut value = [0; 1];
    let length = open_in_root(root, path, flags).ok().and_then(|directory| {
        rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]).ok()
    });
    length == Some(1) && value == *b"y"
}

fn read_in(root: &std::fs::File, path: &Path) -> Option<String> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = open_in_root(root, path, flags).ok()?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    let read = std::fs::File::from(file).take(4 << 20).read_to_string(&mut text).ok()?;
    (read < 4 << 20).then_some(text)
}

/// Looks the user up. Order as in containerd: the client's id, the client's name, the image's `USER`.
///
/// # Errors
/// When a name is unknown, an id is out of range, or a group is given without a user.
pub(crate) fn resolve(
    security: &v1::LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<ResolvedUser, SpecError> {
    let given = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(id), _) => id.value.to_string(),
        (None, "") if security.run_as_group.is_some() && image_user.is_empty() => {
            return Err(SpecError::Invalid("run_as_group is set without a user".into()));
        }
        (None, "") => image_user.to_owned(),
        (None, name) => name.to_owned(),
    };
    let (user, group) =
        given.split_once(':').map_or((given.as_str(), None), |(user, group)| (user, Some(group)));
    let entry = |matches: &dyn Fn(&[&str]) -> bool| accounts.passwd().find(|fields| matches(fields));
    let user = if user.is_empty() { "0" } else { user };
    let (uid, found) = if user.bytes().all(|byte| byte.is_ascii_digit()) {
        let uid = number(user, "user id")?;
        (uid, entry(&|fields| fields[2].parse() == Ok(uid)))
    } else {
        let found = entry(&|fields| fields[0] == user);
        let fields = found
            .clone()
            .ok_or_else(|| SpecError::Invalid(format!("user {user:?} is not in the image's /etc/passwd")))?;
        (number(fields[2], "user id")?, found)
    };
    let name = found.as_ref().map(|fields| fields[0].to_owned());
    let primary = found.as_ref().map_or(Ok(0), |fields| number(fields[3], "group id"))?;
    let gid = match (&security.run_as_group, group) {
        (Some(id), _) => number(&id.value.to_string(), "group id")?,
        (None, Some(group)) => group_id(group, accounts)?,
        (None, None) => primary,
    };
    let home = found.as_ref().and_then(|fields| fields.get(5)).filter(|home| !home.is_empty());
    let home =
        home.map_or_else(|| if uid == 0 { "/root" } else { "/" }.to_owned(), |home| (*home).to_owned());
    let additional_gids = additional(security, accounts, name.as_deref(), gid)?;
    Ok(ResolvedUser { uid, gid, additional_gids, home })
}

/// The first group, what the client adds, and, unless the policy is Strict, what the image's /etc/group says.
fn additional(
    security: &v1::LinuxContainerSecurityContext,
    accounts: &Accounts,
    name: Option<&str>,
    gid: u32,
) -> Result<Vec<u32>, SpecError> {
    let mut gids = vec![gid];
    if security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Merge
        && let Some(name) = name
    {
        for fields in accounts.group() {
            let members = fields.get(3).copied().unwrap_or_default();
            if members.split(',').any(|member| member == name) {
                gids.push(number(fields[2], "group id")?);
            }
        }
    }
    for id in &security.supplemental_groups {
        gids.push(number(&id.to_string(), "supplemental group")?);
    }
    let mut unique = Vec::new();
    gids.into_iter().for_each(|gid| {
        if !unique.contains(&gid) {
            unique.push(gid)
        }
    });
    Ok(unique)
}

fn group_id(group: &str, accounts: &Accounts) -> Result<u32, SpecError> {
    if group.bytes().all(|byte| byte.is_ascii_digit()) && !group.is_empty() {
        return number(group, "group id");
    }
    let found = accounts.group().find(|fields| fields[0] == group);
    let fields = found
        .ok_or_else(|| SpecError::Invalid(format!("group {group:?} is not in the image's /etc/group")))?;
    number(fields[2], "group id")
}

fn number(text: &str, what: &str) -> Result<u32, SpecError> {
    let parsed = text.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32);
    parsed.ok_or_else(|| SpecError::Invalid(format!("{what} {text:?} is not a number from 0 to 2147483647")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:44::/var/www:/bin/sh\nbad\n".into(),
            group: "root:x:0:\nwww:x:44:\nusers:x:100:www,other\n".into(),
        }
    }

    #[test]
    fn users_are_looked_up_in_the_image() {
        for (given, uid, gid, gids, home) in [
            ("", 0, 0, vec![0], "/root"),
            ("www", 33, 44, vec![44, 100], "/var/www"),
            ("33", 33, 44, vec![44, 100], "/var/www"),
            ("33:7", 33, 7, vec![7, 100], "/var/www"),
            ("www:users", 33, 100, vec![100], "/var/www"),
            ("1000", 1000, 0, vec![0], "/"),
        ] {
            let user = resolve(&Default::default(), given, &accounts()).expect(given);
            assert_eq!(user, ResolvedUser { uid, gid, additional_gids: gids, home: home.into() }, "{given}");
        }
    }

    /// Two layers: the lower one has an account.
    fn layers() -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().expect("a directory");
        let layers = vec![dir.path().join("upper"), dir.path().join("lower")];
        layers.iter().for_each(|layer| std::fs::create_dir_all(layer.join("etc")).expect("made"));
        std::fs::write(layers[1].join("etc/passwd"), "app:x:7:7::/:/bin/sh\n").expect("written");
        (dir, layers)
    }

    #[test]
    fn accounts_that_an_upper_layer_removed_are_not_there() {
        let (_dir, layers) = layers();
        let uid = || resolve(&Default::default(), "app", &Accounts::read(&layers)).ok().map(|user| user.uid);
        assert_eq!(uid(), Some(7));
        let whiteout = layers[0].join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, &whiteout, FileType::CharacterDevice, 0o644.into(), 0)
            .expect("a whiteout");
        assert_eq!(uid(), None);
        std::fs::remove_file(&whiteout).expect("removed");
        std::fs::write(&whiteout, "app:x:8:8::/:/bin/sh\n").expect("written");
        assert_eq!(uid(), Some(8));
    }

    #[test]
    #[ignore = "needs root"]
    fn an_opaque_directory_hides_the_accounts_below() {
        let (_dir, layers) = layers();
        let etc = std::fs::File::open(layers[0].join("etc")).expect("open");
        rustix::fs::fsetxattr(etc, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .expect("set");
        resolve(&Default::default(), "app", &Accounts::read(&layers)).expect_err("no such account");
    }

    #[test]
    fn ids_that_would_wrap_to_root_are_refused() {
        for given in
            ["2147483648", "4294967296", "-1", "99999999999999999999", "0x0", "nobody", "33:nogroup", "1:-1"]
        {
            resolve(&Default::default(), given, &accounts()).expect_err(given);
        }
    }

    #[test]
    fn strict_groups_leave_out_the_images() {
        let security = v1::LinuxContainerSecurityContext {
            supplemental_groups_policy: v1::SupplementalGroupsPolicy::Strict.into(),
            supplemental_groups: vec![5, 44, 5],
            ..Default::default()
        };
        assert_eq!(resolve(&security, "www", &accounts()).expect("known").additional_gids, [44, 5]);
    }

    proptest::proptest! {
        /// What is no number and no name of the image is nobody, never root.
        #[test]
        fn cve_2026_30892_only_root_by_name_or_number_is_root(given in "[-+0-9a-z: ]{1,12}") {
            let user = given.split(':').next().unwrap_or_default();
            let root = user.is_empty() || user == "root" || user.bytes().all(|byte| byte == b'0');
            if let Ok(found) = resolve(&Default::default(), &given, &accounts()) {
                proptest::prop_assert_eq!(found.uid == 0, root);
            }
        }
    }
}
