//! The loopback plugin: sets `lo` of a namespace up.

use std::os::fd::AsFd;

use serde_json::json;

use crate::error::{CniError, Code};
use crate::result::{AddResult, Interface, IpConfig};

/// Sets `lo` up in the namespace; up already is no error.
///
/// # Errors
/// When the namespace has no `lo`, or it cannot be entered.
pub fn add(namespace: impl AsFd, path: &str) -> Result<AddResult, CniError> {
    crate::bridge::inside(namespace, async |netlink| {
        let link = netlink.link("lo").await?;
        netlink.set_up(link.index, "lo").await?;
        Ok::<_, CniError>(())
    })?;
    let ip = |address: &str| -> Result<IpConfig, CniError> {
        let address =
            address.parse().map_err(|error| CniError::caused(Code::Internal, "parse an address", error))?;
        Ok(IpConfig { interface: Some(0), address, gateway: None })
    };
    Ok(AddResult {
        interfaces: vec![Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: path.to_owned(),
        }],
        ips: vec![ip("127.0.0.1/8")?, ip("::1/128")?],
        routes: Vec::new(),
        dns: json!({}),
    })
}
