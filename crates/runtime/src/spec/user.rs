//! Who a container's process is: from the client's and the image's words to numbers, by the image's own /etc/passwd.
//!
//! Numbers above 2^31 would wrap to root somewhere (CVE-2024-40635): they are refused.

use std::path::PathBuf;

use cri::v1;
use host::path::open_in_root;
use rustix::fs::{Mode, OFlags};

use super::SpecError;

/// A user as the process gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// Its id.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its further groups, the first one too, in order.
    pub additional_gids: Vec<u32>,
    /// Its home directory.
    pub home: String,
}

/// `/etc/passwd` and `/etc/group` of an image, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads both from an image's layers, the top one first, never leaving a layer. A file of more than 4 MiB counts as
    /// none.
    #[must_use]
    pub fn read(lower: &[PathBuf]) -> Self {
        let read = |name: &str| lower.iter().find_map(|layer| read_in(layer, name)).unwrap_or_default();
        Self { passwd: read("etc/passwd"), group: read("etc/group") }
    }

    fn passwd(&self) -> impl Iterator<Item = Vec<&str>> {
        self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4)
    }

    fn group(&self) -> impl Iterator<Item = Vec<&str>> {
        self.group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3)
    }
}

fn read_in(layer: &std::path::Path, name: &str) -> Option<String> {
    use std::io::Read;
    let root = std::fs::File::open(layer).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = open_in_root(&root, std::path::Path::new(name), flags).ok()?;
    let regular = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
    let _ = Mode::empty();
    if regular != rustix::fs::FileType::RegularFile {
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
pub fn resolve(
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
