//! What a container mounts of its pod's volumes: planned purely, then carried out where a part of a volume is wanted.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use cri::v1::{ImageSpec, MountPropagation};
use k8s_openapi::api::core::v1;

use super::{Kind, Volumes, sub_path};
use crate::environment::expand_strictly;
use crate::pod::model::Pod;

/// What decides a container's mounts beside the manifest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountContext<'a> {
    /// The container's variables, for subPathExpr.
    pub(crate) env: &'a [(String, String)],
    /// The images of image volumes, pulled, by the volume's name.
    pub(crate) images: &'a BTreeMap<String, String>,
    /// Whether the runtime can make a mount read-only with all below it.
    pub(crate) recursive_read_only: bool,
}

/// One mount as it will be asked for.
#[derive(Clone, Debug, PartialEq)]
struct Planned {
    volume: String,
    kind: Kind,
    container_path: String,
    sub_path: Option<String>,
    readonly: bool,
    recursive_read_only: bool,
    propagation: MountPropagation,
}

/// Whether one of the container's mounts asks for a read-only mount with all below it.
pub(crate) fn wants_recursive_read_only(container: &v1::Container) -> bool {
    let mut mounts = container.volume_mounts.iter().flatten();
    mounts.any(|mount| !matches!(mount.recursive_read_only.as_deref(), None | Some("" | "Disabled")))
}

impl Volumes {
    /// What a container mounts, /etc/hosts included where it has no mount of its own there. Parts of volumes are mounted
    /// anew at each start.
    ///
    /// # Errors
    /// What cannot be mounted, and why.
    pub(crate) fn mounts(
        &self,
        pod: &Pod,
        container: &v1::Container,
        context: MountContext<'_>,
    ) -> Result<Vec<cri::v1::Mount>, String> {
        let mut mounts = Vec::new();
        for (index, planned) in plan(pod, container, context)?.into_iter().enumerate() {
            let mut mount = cri::v1::Mount {
                container_path: planned.container_path.clone(),
                readonly: planned.readonly,
                recursive_read_only: planned.recursive_read_only,
                propagation: planned.propagation.into(),
                ..Default::default()
            };
            if planned.kind == Kind::Image {
                let image = context.images.get(&planned.volume).cloned().unwrap_or_default();
                mount.image = Some(ImageSpec { image, ..Default::default() });
                mount.image_sub_path = planned.sub_path.unwrap_or_default();
            } else {
                mount.host_path = self.source(pod, container, index, &planned)?.display().to_string();
            }
            mounts.push(mount);
        }
        if !mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
            mounts.push(cri::v1::Mount {
                container_path: "/etc/hosts".into(),
                host_path: self.hosts_file(&pod.uid).display().to_string(),
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    /// The path that the runtime mounts.
    fn source(
        &self,
        pod: &Pod,
        container: &v1::Container,
        index: usize,
        planned: &Planned,
    ) -> Result<PathBuf, String> {
        let host_path = volume_of(pod, &planned.volume).and_then(|volume| volume.host_path.as_ref());
        let volume = match host_path {
            Some(host_path) => PathBuf::from(&host_path.path),
            None => self.path(pod, planned.kind, &planned.volume),
        };
        let Some(part) = &planned.sub_path else { return Ok(volume) };
        let target = self.pod_directory(&pod.uid).join("volume-subpaths").join(&planned.volume);
        let target = target.join(&container.name).join(index.to_string());
        sub_path::mount(&volume, Path::new(part), &target).map_err(|error| {
            format!(
                "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                planned.volume, container.name
            )
        })?;
        Ok(target)
    }
}

fn volume_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a v1::Volume> {
    pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).find(|volume| volume.name == name)
}

/// Every mount of the container in its order.
fn plan(pod: &Pod, container: &v1::Container, context: MountContext<'_>) -> Result<Vec<Planned>, String> {
    container.volume_mounts.iter().flatten().map(|mount| plan_one(pod, mount, context)).collect()
}

fn plan_one(pod: &Pod, mount: &v1::VolumeMount, context: MountContext<'_>) -> Result<Planned, String> {
    let volume = volume_of(pod, &mount.name);
    let volume = volume.ok_or_else(|| format!("volume {:?} is not one of the pod's", mount.name))?;
    let kind =
        Kind::of(volume).ok_or_else(|| format!("the kind of volume {:?} is not supported", mount.name))?;
    let asked = mount.recursive_read_only.as_deref().unwrap_or_default();
    if asked == "Enabled" && !context.recursive_read_only {
        return Err(format!(
            "volume {:?} requested recursive read-only mode, but it is not supported by the runtime",
            mount.name
        ));
    }
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    Ok(Planned {
        volume: mount.name.clone(),
        kind,
        container_path: Path::new("/").join(&mount.mount_path).display().to_string(),
        sub_path: sub_path_of(mount, context.env)?,
        readonly: mount.read_only.unwrap_or(false) || kind.is_written_by_kubelet() || kind == Kind::Image,
        recursive_read_only: matches!(asked, "Enabled" | "IfPossible") && context.recursive_read_only,
        propagation,
    })
}

/// The part of the volume, with its variables replaced. It is checked again: variables may hold anything.
fn sub_path_of(mount: &v1::VolumeMount, env: &[(String, String)]) -> Result<Option<String>, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let part = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(part), _) => part,
        (None, Some(expression)) => expand_strictly(&expression, env)?,
        (None, None) => return Ok(None),
    };
    let mut components = Path::new(&part).components();
    if Path::new(&part).is_absolute() {
        return Err(format!("error SubPath `{part}` must not be an absolute path"));
    }
    if components.any(|component| component == Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{part}`: must not contain '..'"));
    }
    let plain: PathBuf =
        Path::new(&part).components().filter(|component| *component != Component::CurDir).collect();
    // The whole volume.
    Ok(Some(plain.display().to_string()).filter(|plain| !plain.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;

    fn planned(mount: Value, recursive_read_only: bool) -> Result<Planned, String> {
        let pod = pod_of(json!({
            "containers": [{ "name": "a", "image": "i", "volumeMounts": [mount] }],
            "volumes": [
                { "name": "e", "emptyDir": {} },
                { "name": "c", "configMap": { "name": "c" } },
                { "name": "h", "hostPath": { "path": "/h" } },
            ],
        }));
        let env = [("POD".to_owned(), "web-1".to_owned()), ("UP".to_owned(), "../x".to_owned())];
        let context = MountContext { env: &env, images: &BTreeMap::new(), recursive_read_only };
        plan(&pod, &pod.containers[0].spec, context).map(|mut plans| plans.remove(0))
    }

    #[test]
    fn mounts_say_what_the_manifest_says() {
        let base = planned(json!({ "name": "e", "mountPath": "data" }), true).expect("planned");
        assert_eq!(
            (base.container_path.as_str(), base.readonly, base.kind),
            ("/data", false, Kind::EmptyDir)
        );
        assert!(planned(json!({ "name": "c", "mountPath": "/c" }), true).expect("planned").readonly);
        let propagated =
            planned(json!({ "name": "h", "mountPath": "/h", "mountPropagation": "HostToContainer" }), true);
        assert_eq!(propagated.expect("planned").propagation, MountPropagation::PropagationHostToContainer);
        planned(json!({ "name": "none", "mountPath": "/h" }), true).expect_err("no such volume");
    }

    #[test]
    fn recursive_read_only_is_what_the_runtime_can() {
        let mount = |mode: &str| json!({ "name": "e", "mountPath": "/e", "readOnly": true, "recursiveReadOnly": mode });
        let asked = |mode: &str, able: bool| planned(mount(mode), able).map(|plan| plan.recursive_read_only);
        for (mode, able, expect) in [
            ("Disabled", true, Ok(false)),
            ("IfPossible", true, Ok(true)),
            ("IfPossible", false, Ok(false)),
            ("Enabled", true, Ok(true)),
        ] {
            assert_eq!(asked(mode, able), expect, "{mode} {able}");
        }
        assert!(asked("Enabled", false).expect_err("not able").contains("not supported by the runtime"));
    }

    #[test]
    fn a_part_of_a_volume_stays_a_part_whatever_variables_hold() {
        let part = |field: &str, text: &str| {
            planned(json!({ "name": "e", "mountPath": "/e", field: text }), true).map(|plan| plan.sub_path)
        };
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(part("subPath", "a/./b/"), some("a/b"));
        assert_eq!(part("subPath", "."), Ok(None));
        assert_eq!(part("subPath", "$(POD)"), some("$(POD)"));
        assert_eq!(part("subPathExpr", "logs/$(POD)"), some("logs/web-1"));
        assert_eq!(part("subPathExpr", "$$(POD)"), some("$(POD)"));
        for (field, text, expect) in [
            ("subPath", "/a", "must not be an absolute path"),
            ("subPath", "a/../b", "must not contain '..'"),
            ("subPathExpr", "$(UP)", "must not contain '..'"),
            ("subPathExpr", "$(NO)/a", "missing value for \"NO\""),
        ] {
            let error = part(field, text).expect_err(text);
            assert!(error.contains(expect), "{error}");
        }
    }
}
