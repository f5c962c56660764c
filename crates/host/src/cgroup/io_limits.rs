//! Limits of block I/O, and how each version writes them. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Weight and rates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IoLimits {
    /// Share beside others, 10 to 1000.
    pub weight: Option<u16>,
    /// The same for one device (major, minor).
    pub device_weights: Vec<(u32, u32, u16)>,
    /// Rates per device.
    pub throttles: Vec<Throttle>,
}

/// At most so much of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// What is counted.
    pub what: Rate,
    /// Per second; 0 = no limit.
    pub rate: u64,
}

/// What is counted per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Bytes read.
    ReadBytes,
    /// Bytes written.
    WriteBytes,
    /// Operations that read.
    Reads,
    /// Operations that write.
    Writes,
}

impl IoLimits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Lines of the `blkio` controller, but for the weights.
    pub(super) fn v1_lines(&self) -> Vec<(&'static str, String)> {
        let line = |throttle: &Throttle| {
            let file = match throttle.what {
                Rate::ReadBytes => "blkio.throttle.read_bps_device",
                Rate::WriteBytes => "blkio.throttle.write_bps_device",
                Rate::Reads => "blkio.throttle.read_iops_device",
                Rate::Writes => "blkio.throttle.write_iops_device",
            };
            (file, format!("{}:{} {}", throttle.major, throttle.minor, throttle.rate))
        };
        self.throttles.iter().map(line).collect()
    }

    /// Lines of `io.max`: the kernel takes one device per write.
    pub(super) fn v2_lines(&self) -> Vec<String> {
        let mut devices: BTreeMap<(u32, u32), String> = BTreeMap::new();
        for throttle in &self.throttles {
            let name = match throttle.what {
                Rate::ReadBytes => "rbps",
                Rate::WriteBytes => "wbps",
                Rate::Reads => "riops",
                Rate::Writes => "wiops",
            };
            let rate = if throttle.rate == 0 { "max".to_owned() } else { throttle.rate.to_string() };
            let device = devices.entry((throttle.major, throttle.minor)).or_default();
            device.push_str(&format!(" {name}={rate}"));
        }
        devices.into_iter().map(|((major, minor), rates)| format!("{major}:{minor}{rates}")).collect()
    }

    /// Weights as the BFQ scheduler takes them on both versions: of all devices, then of single ones.
    pub(super) fn bfq_lines(&self) -> Vec<String> {
        let all = self.weight.map(|weight| weight.to_string());
        let single =
            self.device_weights.iter().map(|(major, minor, weight)| format!("{major}:{minor} {weight}"));
        all.into_iter().chain(single).collect()
    }

    /// The weight as `io.weight` takes it: 10…1000 becomes 1…10000.
    pub(super) fn io_weight(&self) -> Option<String> {
        self.weight.map(|weight| (1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_of_one_device_are_one_line_on_v2_and_one_file_each_on_v1() {
        let throttle = |what, rate| Throttle { major: 8, minor: 0, what, rate };
        let limits = IoLimits {
            throttles: vec![throttle(Rate::ReadBytes, 1000), throttle(Rate::Writes, 0)],
            ..IoLimits::default()
        };
        assert_eq!(limits.v2_lines(), ["8:0 rbps=1000 wiops=max"]);
        let wanted = [
            ("blkio.throttle.read_bps_device", "8:0 1000".to_owned()),
            ("blkio.throttle.write_iops_device", "8:0 0".to_owned()),
        ];
        assert_eq!(limits.v1_lines(), wanted);
    }

    #[test]
    fn weights_convert_end_to_end() {
        for (weight, converted) in [(10, "1"), (100, "910"), (1000, "10000")] {
            let limits = IoLimits { weight: Some(weight), ..IoLimits::default() };
            assert_eq!(limits.io_weight().as_deref(), Some(converted), "{weight}");
        }
        let limits = IoLimits { weight: Some(50), device_weights: vec![(8, 16, 70)], ..IoLimits::default() };
        assert_eq!(limits.bfq_lines(), ["50", "8:16 70"]);
    }
}
