//! Whether this node's Services are ours to serve, or a kube-proxy pod's. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What the user asks for: `--proxy=auto|on|off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// On, unless a kube-proxy pod runs on the node.
    #[default]
    Auto,
    /// On, whatever runs on the node.
    On,
    /// Off.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is not one of auto, on, off")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// Whether the proxy writes rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Switch {
    /// It does.
    On,
    /// Every `KUBE-` chain is somebody else's. Also while nobody knows yet which pods the node has.
    #[default]
    Off,
}

/// Decides by the labels of the node's pods that have not ended.
pub fn switch<'a>(mode: Mode, pods: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Switch {
    let is_kube_proxy =
        |labels: &BTreeMap<String, String>| labels.get("k8s-app").is_some_and(|app| app == "kube-proxy");
    match mode {
        Mode::On => Switch::On,
        Mode::Off => Switch::Off,
        Mode::Auto if pods.into_iter().any(is_kube_proxy) => Switch::Off,
        Mode::Auto => Switch::On,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kube_proxy_pod_decides_only_where_nobody_else_has() {
        let labels = |app: &str| BTreeMap::from([("k8s-app".to_owned(), app.to_owned())]);
        let (with, without) = ([labels("kube-dns"), labels("kube-proxy")], [labels("kube-dns")]);
        for (mode, beside, alone) in [
            ("auto", Switch::Off, Switch::On),
            ("on", Switch::On, Switch::On),
            ("off", Switch::Off, Switch::Off),
        ] {
            let mode: Mode = mode.parse().unwrap();
            assert_eq!((switch(mode, &with), switch(mode, &without)), (beside, alone), "{mode}");
        }
        assert!("yes".parse::<Mode>().unwrap_err().contains("auto, on, off"));
    }
}
