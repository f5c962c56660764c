//! The host-local IPAM plugin: addresses from ranges, leases as files in upstream's layout.
//!
//! `<dataDir>/<network>/<address>` holds the container's id and the interface's name; `last_reserved_ip.N` the address
//! that range N gave last, so that an address rests as long as possible before it is used again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::result::{AddResult, IpConfig, Route};

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// A range of addresses as it is configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RangeConfig {
    subnet: IpNet,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// The `ipam` object of a configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IpamConfig {
    #[serde(rename = "type")]
    _type: String,
    #[serde(default)]
    ranges: Vec<Vec<RangeConfig>>,
    // The form of one range, older than `ranges`.
    subnet: Option<IpNet>,
    range_start: Option<IpAddr>,
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
}

/// A range to give addresses from, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet: its prefix length goes with each address.
    pub subnet: IpNet,
    /// The first address that is given.
    pub start: IpAddr,
    /// The last address that is given.
    pub end: IpAddr,
    /// The gateway: never given to a container.
    pub gateway: IpAddr,
}

impl Range {
    fn checked(config: &RangeConfig) -> Result<Self, CniError> {
        let invalid =
            |why: String| CniError::new(Code::InvalidConfig, format!("range {}: {why}", config.subnet));
        let subnet = config.subnet.trunc();
        let bits = u32::from(subnet.max_prefix_len() - subnet.prefix_len());
        if bits < 2 {
            return Err(invalid("too small to give addresses from".into()));
        }
        let first = offset(subnet.network(), 1);
        let last = match subnet {
            IpNet::V4(net) => offset(IpAddr::V4(net.broadcast()), -1),
            IpNet::V6(net) => IpAddr::V6(net.broadcast()),
        };
        let range = Self {
            subnet,
            start: config.range_start.unwrap_or(first),
            end: config.range_end.unwrap_or(last),
            gateway: config.gateway.unwrap_or(first),
        };
        for (name, address) in [("rangeStart", range.start), ("rangeEnd", range.end)] {
            if !subnet.contains(&address) {
                return Err(invalid(format!("{name} {address} is not in the subnet")));
            }
        }
        if range.start > range.end {
            return Err(invalid(format!("rangeStart {} is after rangeEnd {}", range.start, range.end)));
        }
        Ok(range)
    }

    /// Every address of the range once, beginning after `last`, going round, without the gateway.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let first = match last {
            Some(last) if last >= self.start && last < self.end => offset(last, 1),
            _ => self.start,
        };
        let (start, end, gateway) = (self.start, self.end, self.gateway);
        let mut next = Some(first);
        std::iter::from_fn(move || {
            let current = next?;
            let following = if current == end { start } else { offset(current, 1) };
            next = (following != first).then_some(following);
            Some(current)
        })
        .filter(move |address| *address != gateway)
    }
}

fn offset(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).wrapping_add_signed(by.into()).into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).wrapping_add_signed(by.into()).into()),
    }
}

/// The plugin's configuration, checked.
#[derive(Clone, Debug)]
pub struct HostLocal {
    /// One address is given from each set; a set's ranges are tried in order.
    pub range_sets: Vec<Vec<Range>>,
    /// The routes that the container gets.
    pub routes: Vec<Route>,
    /// The addresses that the runtime asks for.
    requested: Vec<IpAddr>,
    directory: PathBuf,
}

impl HostLocal {
    /// Parses the `ipam` object, and the `ips` of `runtimeConfig`.
    ///
    /// # Errors
    /// With the name of what is wrong or not supported.
    pub fn parse(network: &str, ipam: &Value, runtime_config: &Value) -> Result<Self, CniError> {
        let config: IpamConfig = serde_json::from_value(ipam.clone()).map_err(|error| {
            CniError::caused(Code::InvalidConfig, "parse the host-local configuration", error)
        })?;
        let mut sets = config.ranges.clone();
        if let Some(subnet) = config.subnet {
            let (range_start, range_end, gateway) = (config.range_start, config.range_end, config.gateway);
            sets.insert(0, vec![RangeConfig { subnet, range_start, range_end, gateway }]);
        }
        if sets.iter().all(Vec::is_empty) {
            return Err(CniError::new(Code::InvalidConfig, "host-local: no ranges are configured"));
        }
        let check = |set: &Vec<RangeConfig>| set.iter().map(Range::checked).collect::<Result<Vec<_>, _>>();
        let data_dir = config.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
        Ok(Self {
            range_sets: sets.iter().map(check).collect::<Result<_, _>>()?,
            routes: config.routes,
            requested: requested(runtime_config)?,
            directory: data_dir.join(network),
        })
    }

    /// Leases one address of each set to the container's interface.
    ///
    /// # Errors
    /// When it holds a lease already, a set is exhausted, or the files cannot be written: then nothing more is leased.
    pub fn add(&self, container_id: &str, interface: &str) -> Result<AddResult, CniError> {
        let _lock = self.lock()?;
        if let Some(held) = self.held_by(container_id, interface)?.first() {
            let message = format!(
                "{interface} of container {container_id} holds the address {} already; DEL comes before another ADD",
                held.address
            );
            return Err(CniError::new(Code::InvalidEnvironment, message));
        }
        self.lease_all(container_id, interface)
    }

    /// The same for a container that was just made and holds none: what others hold is not read.
    ///
    /// # Errors
    /// When a set is exhausted, or the files cannot be written: then nothing is leased.
    pub fn add_first(&self, container_id: &str, interface: &str) -> Result<AddResult, CniError> {
        let _lock = self.lock()?;
        self.lease_all(container_id, interface)
    }

    fn lease_all(&self, container_id: &str, interface: &str) -> Result<AddResult, CniError> {
        let mut result = AddResult { routes: self.routes.clone(), ..AddResult::default() };
        for (index, set) in self.range_sets.iter().enumerate() {
            match self.lease(index, set, container_id, interface) {
                Ok(ip) => result.ips.push(ip),
                Err(error) => {
                    for ip in &result.ips {
                        let _ = std::fs::remove_file(self.directory.join(ip.address.addr().to_string()));
                    }
                    return Err(error);
                }
            }
        }
        Ok(result)
    }

    fn lease(
        &self,
        index: usize,
        set: &[Range],
        container_id: &str,
        interface: &str,
    ) -> Result<IpConfig, CniError> {
        let last_file = self.directory.join(format!("last_reserved_ip.{index}"));
        let last = std::fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse().ok());
        let wish =
            self.requested.iter().copied().find(|ip| set.iter().any(|range| range.subnet.contains(ip)));
        for range in set {
            for address in range.candidates(last).filter(|address| wish.is_none_or(|wish| wish == *address)) {
                let file = self.directory.join(address.to_string());
                match OpenOptions::new().write(true).create_new(true).open(&file) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(self.io("create a lease in", error)),
                    Ok(mut lease) => {
                        let written = write!(lease, "{container_id}\r\n{interface}")
                            .and_then(|()| std::fs::write(&last_file, address.to_string()));
                        if let Err(error) = written {
                            // Nobody would free an address that is nobody's.
                            let _ = std::fs::remove_file(&file);
                            return Err(self.io("write a lease in", error));
                        }
                        let address = IpNet::new_assert(address, range.subnet.prefix_len());
                        return Ok(IpConfig { interface: None, address, gateway: Some(range.gateway) });
                    }
                }
            }
        }
        if let Some(wish) = wish {
            let message = format!("address {wish} is leased to another container, or outside of the range");
            return Err(CniError::new(Code::TryAgain, message));
        }
        let subnets: Vec<String> = set.iter().map(|range| range.subnet.to_string()).collect();
        let message = format!(
            "no free address in {}; every one is leased in {}",
            subnets.join(", "),
            self.directory.display()
        );
        Err(CniError::new(Code::TryAgain, message))
    }

    /// Frees the leases of the container's interface; none is no error.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub fn del(&self, container_id: &str, interface: &str) -> Result<(), CniError> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.held_by(container_id, interface)?.iter().try_for_each(|lease| self.free(lease))
    }

    fn held_by(&self, container_id: &str, interface: &str) -> Result<Vec<Lease>, CniError> {
        let mut leases = self.leases()?;
        leases.retain(|lease| lease.container_id == container_id && lease.interface == interface);
        Ok(leases)
    }

    /// CNI 1.1 §4 "CHECK": the container's interface holds what it was given.
    ///
    /// # Errors
    /// When it holds nothing, or the leases cannot be read.
    pub fn check(&self, container_id: &str, interface: &str) -> Result<(), CniError> {
        if self.held_by(container_id, interface)?.is_empty() {
            return Err(CniError::new(Code::Internal, format!("container {container_id} holds no address")));
        }
        Ok(())
    }

    /// Frees one lease, if it is still that container's.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn free(&self, lease: &Lease) -> Result<(), CniError> {
        let file = self.directory.join(lease.address.to_string());
        if read_lease(&file).is_some_and(|now| now == *lease) {
            std::fs::remove_file(&file).map_err(|error| self.io("remove a lease in", error))?;
        }
        Ok(())
    }

    /// Every lease.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>, CniError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| self.io("list the leases in", error))?,
        };
        let mut leases: Vec<Lease> =
            entries.flatten().filter_map(|entry| read_lease(&entry.path())).collect();
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// Upstream's lock: the directory's `lock` file, by flock(2).
    fn lock(&self) -> Result<File, CniError> {
        let made = host::path::make_directory(&self.directory, 0o700);
        made.map_err(|error| self.io("create", error))?;
        let open =
            OpenOptions::new().create(true).truncate(false).write(true).open(self.directory.join("lock"));
        let file = open.map_err(|error| self.io("open the lock of", error))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| self.io("lock", error.into()))?;
        Ok(file)
    }

    fn io(&self, what: &str, error: io::Error) -> CniError {
        CniError::caused(Code::Io, format!("{what} {}", self.directory.display()), error)
    }
}

fn requested(runtime_config: &Value) -> Result<Vec<IpAddr>, CniError> {
    let asked = runtime_config["ips"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let parse = |text: &str| {
        let address = text.split('/').next().unwrap_or_default();
        address.parse().map_err(|error| {
            CniError::caused(
                Code::InvalidConfig,
                format!("parse the address {text:?} that is asked for"),
                error,
            )
        })
    };
    asked.map(parse).collect()
}

/// An address that a container holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub container_id: String,
    /// On which interface.
    pub interface: String,
}

fn read_lease(file: &Path) -> Option<Lease> {
    let address = file.file_name()?.to_str()?.parse().ok()?;
    let text = std::fs::read_to_string(file).ok()?;
    let (container_id, interface) = text.split_once("\r\n").unwrap_or((&text, ""));
    Some(Lease {
        address,
        container_id: container_id.trim().to_owned(),
        interface: interface.trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn allocator(subnet: &str, directory: &Path) -> HostLocal {
        of_subnets(&[subnet], directory)
    }

    /// An address of each subnet.
    fn of_subnets(subnets: &[&str], directory: &Path) -> HostLocal {
        let sets: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let ipam = json!({ "type": "host-local", "ranges": sets, "dataDir": directory });
        HostLocal::parse("net", &ipam, &Value::Null).expect("valid")
    }

    #[test]
    fn addresses_go_round_before_one_is_used_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = allocator("10.1.0.0/29", directory.path());
        let mut given = Vec::new();
        for id in 0..8 {
            let result = ipam.add(&format!("c{id}"), "eth0").expect("a lease");
            given.push(result.ips[0].address.addr().to_string());
            ipam.del(&format!("c{id}"), "eth0").expect("freed");
        }
        assert_eq!(given[..6], ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"]);
    }

    #[test]
    fn an_exhausted_range_is_told_and_leases_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = allocator("10.1.0.0/30", directory.path());
        ipam.add("a", "eth0").expect("the only one");
        let error = ipam.add("b", "eth0").expect_err("exhausted").to_string();
        assert!(error.contains("10.1.0.0/30"), "{error}");
        assert_eq!(ipam.leases().expect("listed").len(), 1);
    }

    #[test]
    fn an_address_may_be_asked_for_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = json!({ "type": "host-local", "subnet": "10.1.0.0/24", "dataDir": directory.path() });
        let wish = json!({ "ips": ["10.1.0.7/24"] });
        let ipam = HostLocal::parse("n", &ipam, &wish).expect("valid");
        assert_eq!(ipam.add("a", "eth0").expect("free").ips[0].address.to_string(), "10.1.0.7/24");
        assert!(ipam.add("b", "eth0").expect_err("taken").message.contains("10.1.0.7"));
    }

    #[test]
    fn both_families_are_leased_together_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = of_subnets(&["10.1.0.0/24", "fd00:1::/126"], directory.path());
        let leased = ipam.add("a", "eth0").expect("free");
        assert_eq!(leased.ips[1].address.to_string(), "fd00:1::2/126");
        ipam.add("b", "eth0").expect("free");
        ipam.add("c", "eth0").expect_err("no IPv6 address is left");
        assert_eq!(ipam.leases().expect("listed").len(), 4);
    }

    #[test]
    fn an_interface_holds_one_lease_of_each_set_until_it_is_deleted() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = allocator("10.1.0.0/24", directory.path());
        ipam.add("a", "eth0").expect("free");
        let before = ipam.leases().expect("listed");
        let error = ipam.add("a", "eth0").expect_err("it holds one");
        assert!(error.message.contains("10.1.0.2"), "{error}");
        assert_eq!(ipam.leases().expect("listed"), before);
        ipam.add("a", "eth1").expect("another interface");
        ipam.add("b", "eth0").expect("another container");
        ipam.del("a", "eth0").expect("freed");
        ipam.add("a", "eth0").expect("free again");
    }

    #[test]
    fn a_lease_that_cannot_be_written_down_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let ipam = allocator("10.1.0.0/24", directory.path());
        std::fs::create_dir_all(directory.path().join("net/last_reserved_ip.0")).expect("made");
        ipam.add("a", "eth0").expect_err("the last lease cannot be noted");
        assert_eq!(ipam.leases().expect("listed"), []);
    }

    #[test]
    fn del_succeeds_without_a_lease() {
        let directory = tempfile::tempdir().expect("a directory");
        allocator("10.1.0.0/24", directory.path()).del("nobody", "eth0").expect("nothing to do");
    }

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let error =
            HostLocal::parse("n", &json!({ "type": "host-local", "subnett": "10.0.0.0/8" }), &Value::Null)
                .expect_err("a typo");
        assert!(format!("{:?}", error.source).contains("subnett"), "{error:?}");
    }

    proptest! {
        #[test]
        fn every_lease_is_unique_and_in_the_range(operations in prop::collection::vec((0_u8..20, any::<bool>()), 1..60)) {
            let directory = tempfile::tempdir().expect("a directory");
            let ipam = allocator("10.1.0.0/28", directory.path());
            let mut held = BTreeSet::new();
            for (id, add) in operations {
                let id = format!("c{id}");
                if add && held.len() < 13 && !held.contains(&id) {
                    ipam.add(&id, "eth0").expect("a lease");
                    held.insert(id);
                } else {
                    ipam.del(&id, "eth0").expect("freed");
                    held.remove(&id);
                }
                let leases = ipam.leases().expect("listed");
                let owners: BTreeSet<String> = leases.iter().map(|lease| lease.container_id.clone()).collect();
                prop_assert_eq!(&owners, &held);
                prop_assert_eq!(leases.len(), held.len());
                prop_assert!(leases.iter().all(|lease| lease.address.to_string() != "10.1.0.1"));
            }
        }
    }
}
