//! What the machine is: read once from files.

use std::path::Path;

use crate::downward::Capacity;

/// The machine, as `status.nodeInfo` and `status.capacity` tell it.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) capacity: Capacity,
    pub(super) machine_id: String,
    pub(super) system_uuid: String,
    pub(super) boot_id: String,
    pub(super) kernel: String,
    pub(super) os_image: String,
    pub(super) architecture: &'static str,
    /// Bytes of a page, and how many of such pages are set aside.
    pub(super) huge_pages: Vec<(u64, u64)>,
}

/// Looks at the machine; what cannot be read is empty.
pub(super) fn machine(root_dir: &Path, cgroup_root: &str) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    Machine {
        capacity: Capacity::of_node(root_dir, cgroup_root),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        os_image: os_image(&read("/etc/os-release")),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        huge_pages: huge_pages(Path::new(crate::huge_pages::POOLS)),
    }
}

/// `PRETTY_NAME` of os-release(5).
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn huge_pages(directory: &Path) -> Vec<(u64, u64)> {
    let count = |(size, pool): (u64, std::path::PathBuf)| {
        let count = std::fs::read_to_string(pool.join("nr_hugepages")).ok()?;
        Some((size, count.trim().parse().ok()?))
    };
    crate::huge_pages::pools(directory).into_iter().filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_named_as_it_names_itself() {
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }
}
