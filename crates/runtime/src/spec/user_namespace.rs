//! The user namespace of a pod: what CRI may ask for, with containerd's texts where clients know them.

use cri::v1;
use cri::v1::NamespaceMode;
use oci::plan::{IdMap, UserPlan};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::SpecError;

/// The ids of a pod's own user namespace; `None` where it shares the node's.
///
/// # Errors
/// When the mode is no pod's, or the mappings do not fit it.
pub(crate) fn user_namespace(options: &v1::NamespaceOption) -> Result<Option<UserPlan>, SpecError> {
    let Some(asked) = &options.userns_options else { return Ok(None) };
    let uid = one(&asked.uids).map_err(|problem| invalid(&format!("UID mapping: {problem}")))?;
    let gid = one(&asked.gids).map_err(|problem| invalid(&format!("GID mapping: {problem}")))?;
    match (asked.mode(), uid, gid) {
        (NamespaceMode::Node, None, None) => Ok(None),
        (NamespaceMode::Node, ..) => Err(invalid("can't use user namespace mode \"NODE\" with mappings")),
        (NamespaceMode::Pod, Some(uid), Some(gid)) => Ok(Some(UserPlan { uid: vec![uid], gid: vec![gid] })),
        (NamespaceMode::Pod, ..) => {
            Err(invalid("can't use user namespace mode \"POD\" without UID and GID mappings"))
        }
        (mode @ (NamespaceMode::Container | NamespaceMode::Target), ..) => {
            Err(invalid(&format!("unsupported user namespace mode: {:?}", mode.as_str_name())))
        }
    }
}

fn invalid(problem: &str) -> SpecError {
    SpecError::Invalid(format!("user namespace configuration: {problem}"))
}

/// The root of the namespace must be somebody, as images belong to it.
fn one(maps: &[v1::IdMapping]) -> Result<Option<IdMap>, String> {
    let [map] = maps else {
        return match maps.len() {
            0 => Ok(None),
            count => Err(format!("only one mapping line supported, got {count} mapping lines")),
        };
    };
    if map.length < 1 {
        return Err(format!("invalid mapping length: {}", map.length));
    }
    if map.container_id != 0 {
        return Err(format!("container ID 0 must be mapped, the mapping begins at {}", map.container_id));
    }
    // Ids are 32 bits wide, and the last one means "none".
    if map.host_id.checked_add(map.length).is_none() {
        return Err(format!("{} ids from {} on are more than there are", map.length, map.host_id));
    }
    Ok(Some(IdMap { container: map.container_id, host: map.host_id, size: map.length }))
}

/// As config.json has them.
pub(super) fn mappings(maps: &[IdMap]) -> Vec<LinuxIdMapping> {
    let mapping = |map: &IdMap| {
        let builder = LinuxIdMappingBuilder::default();
        let built = builder.container_id(map.container).host_id(map.host).size(map.size).build();
        built.expect("all its fields are set")
    };
    maps.iter().map(mapping).collect()
}

/// Those of a mount. A kubelet gives a mount those of the pod.
pub(super) fn of_mount(maps: &[v1::IdMapping]) -> Option<Vec<LinuxIdMapping>> {
    let map =
        |map: &v1::IdMapping| IdMap { container: map.container_id, host: map.host_id, size: map.length };
    let maps: Vec<IdMap> = maps.iter().map(map).collect();
    (!maps.is_empty()).then(|| mappings(&maps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_one_mapping_that_has_its_root_or_none() {
        let map = |container_id, host_id, length| v1::IdMapping { host_id, container_id, length };
        let pod = NamespaceMode::Pod;
        check(None, Ok(None));
        check(Some((NamespaceMode::Node, vec![])), Ok(None));
        check(Some((pod, vec![map(0, 1000, 100_000)])), Ok(Some(1000)));
        check(Some((NamespaceMode::Node, vec![map(0, 1, 1)])), Err("with mappings"));
        check(Some((pod, vec![])), Err("without UID and GID mappings"));
        check(Some((pod, vec![map(0, 1000, 10), map(0, 2000, 10)])), Err("only one mapping line supported"));
        check(Some((pod, vec![map(1, 1000, 10)])), Err("container ID 0 must be mapped"));
        check(Some((pod, vec![map(0, 1000, 0)])), Err("invalid mapping length"));
        check(Some((pod, vec![map(0, u32::MAX - 1, 2)])), Err("more than there are"));
        check(
            Some((NamespaceMode::Container, vec![])),
            Err("unsupported user namespace mode: \"CONTAINER\""),
        );
        check(Some((NamespaceMode::Target, vec![])), Err("unsupported user namespace mode: \"TARGET\""));
    }

    fn check(asked: Option<(NamespaceMode, Vec<v1::IdMapping>)>, expect: Result<Option<u32>, &str>) {
        let userns_options = asked.clone().map(|(mode, maps)| v1::UserNamespace {
            mode: mode.into(),
            uids: maps.clone(),
            gids: maps,
        });
        let got = user_namespace(&v1::NamespaceOption { userns_options, ..Default::default() });
        match (got, expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got.map(|user| user.uid[0].host), expect, "{asked:?}"),
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{asked:?}: {error}"),
            (got, expect) => panic!("{asked:?}: {got:?}, expected {expect:?}"),
        }
    }
}
