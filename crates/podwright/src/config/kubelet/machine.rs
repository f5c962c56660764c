//! Whether a KubeletConfiguration lets a node start on this machine at all: `failSwapOn`, `failCgroupV1`.

use super::Settings;

/// What such keys ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The devices and files that it swaps to.
    swaps: Vec<String>,
    /// Whether its controllers are those of cgroup v1.
    is_cgroup_v1: bool,
}

impl Machine {
    /// Looks at this one.
    pub(crate) fn here() -> Self {
        let manager = host::cgroup::CgroupManager::detect();
        Self {
            swaps: swaps(&std::fs::read_to_string("/proc/swaps").unwrap_or_default()),
            is_cgroup_v1: manager.is_ok_and(|manager| manager.version() == host::cgroup::Version::V1),
        }
    }
}

/// The first column below the heading. A name's spaces are written as octal numbers, so that there are none.
fn swaps(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1);
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

impl Settings {
    /// Why a node may not start there.
    pub(crate) fn refuse(&self, machine: &Machine) -> Result<(), String> {
        if self.fail_swap_on && !machine.swaps.is_empty() {
            let swaps = machine.swaps.join(", ");
            return Err(format!(
                "this machine swaps to {swaps}: switch that off (swapoff -a), or set failSwapOn: false"
            ));
        }
        if self.fail_cgroup_v1 && machine.is_cgroup_v1 {
            return Err("failCgroupV1: true, and this machine has cgroup v1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::kubelet_text;
    use super::*;

    const SWAPS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/sda2                               partition\t8388604\t\t0\t\t-2
/swap\\040file                           file\t\t1024\t\t0\t\t-3
";

    #[test]
    fn a_machine_that_swaps_or_has_cgroup_v1_is_refused_where_the_file_says_so() {
        assert_eq!(swaps(SWAPS), ["/dev/sda2", "/swap\\040file"]);
        let (v1, plain) = (Machine { is_cgroup_v1: true, ..Machine::default() }, Machine::default());
        let swapping = Machine { swaps: vec!["/dev/sda2".to_owned()], ..Machine::default() };
        for (keys, machine, expect) in [
            ("", &plain, None),
            ("", &v1, None),
            ("", &swapping, Some("this machine swaps to /dev/sda2")),
            ("failSwapOn: false\n", &swapping, None),
            ("failCgroupV1: true\n", &v1, Some("failCgroupV1: true")),
            ("failCgroupV1: true\n", &plain, None),
            ("failCgroupV1: false\n", &v1, None),
        ] {
            let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
            let settings = kubelet_text(&format!("{head}{keys}")).expect(keys).settings;
            match (settings.refuse(machine), expect) {
                (Ok(()), None) => {}
                (Err(error), Some(expect)) => assert!(error.contains(expect), "{error}"),
                (other, _) => panic!("{keys}: {other:?}"),
            }
        }
    }
}
