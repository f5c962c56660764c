//! What no volume and no mount can be.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Volume, VolumeMount,
};

use super::container::exactly_one;
use super::names::{self, Form};
use super::{downward, one_of, tell, unique_name};
use crate::decode::Fault;
use crate::quantity;

const HOST_PATH_TYPES: [&str; 8] =
    ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

/// Checks a pod's volumes; returns their names.
pub(super) fn names(volumes: &[Volume], faults: &mut Vec<Fault>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let at = format!("spec.volumes[{index}]");
        unique_name(faults, &format!("{at}.name"), &volume.name, Form::Label, &mut seen);
        // Its sources are its fields but the name.
        let value = serde_json::to_value(volume).unwrap_or_default();
        let sources =
            value.as_object().map_or(0, |fields| fields.keys().filter(|key| *key != "name").count());
        if sources > 1 {
            tell(faults, &at, "has more than one source");
        }
        source(volume, &at, faults);
    }
    seen.into_iter().map(str::to_owned).collect()
}

fn source(volume: &Volume, at: &str, faults: &mut Vec<Fault>) {
    if let Some(host_path) = &volume.host_path {
        let path = format!("{at}.hostPath.path");
        match host_path.path.as_str() {
            "" => tell(faults, path, "required"),
            given if given.split('/').any(|part| part == "..") => {
                tell(faults, path, format!("{given:?} goes up with '..'"));
            }
            given if !given.starts_with('/') => tell(faults, path, format!("{given:?} is not absolute")),
            _ => {}
        }
        one_of(faults, &format!("{at}.hostPath.type"), host_path.type_.as_deref(), &HOST_PATH_TYPES);
    }
    if let Some(empty_dir) = &volume.empty_dir {
        let medium = empty_dir.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory" | "HugePages") && !medium.starts_with("HugePages-") {
            tell(
                faults,
                format!("{at}.emptyDir.medium"),
                format!("{medium:?} is not supported: it is Memory, HugePages, HugePages-SIZE or nothing"),
            );
        }
        if let Some(limit) = &empty_dir.size_limit {
            let path = format!("{at}.emptyDir.sizeLimit");
            match quantity::parse(&limit.0) {
                Err(error) => tell(faults, path, format!("{:?} {error}", limit.0)),
                Ok(amount) if amount.is_negative() => tell(faults, path, format!("{amount} is negative")),
                Ok(_) => {}
            }
        }
    }
    if let Some(config_map) = &volume.config_map {
        let at = format!("{at}.configMap");
        names::check(faults, &format!("{at}.name"), &config_map.name, Form::Subdomain);
        mode(faults, &format!("{at}.defaultMode"), config_map.default_mode);
        items(config_map.items.as_deref().unwrap_or_default(), &at, faults);
    }
    if let Some(secret) = &volume.secret {
        let at = format!("{at}.secret");
        let name = secret.secret_name.as_deref().unwrap_or_default();
        names::check(faults, &format!("{at}.secretName"), name, Form::Subdomain);
        mode(faults, &format!("{at}.defaultMode"), secret.default_mode);
        items(secret.items.as_deref().unwrap_or_default(), &at, faults);
    }
    if let Some(downward) = &volume.downward_api {
        mode(faults, &format!("{at}.downwardAPI.defaultMode"), downward.default_mode);
        downward_files(downward.items.as_deref().unwrap_or_default(), &format!("{at}.downwardAPI"), faults);
    }
    if let Some(image) = &volume.image {
        if image.reference.as_ref().is_none_or(String::is_empty) {
            tell(faults, format!("{at}.image.reference"), "required");
        }
        let policies = ["Always", "IfNotPresent", "Never"];
        one_of(faults, &format!("{at}.image.pullPolicy"), image.pull_policy.as_deref(), &policies);
    }
    if let Some(projected) = &volume.projected {
        projection(projected, &format!("{at}.projected"), faults);
    }
}

fn projection(projected: &ProjectedVolumeSource, at: &str, faults: &mut Vec<Fault>) {
    mode(faults, &format!("{at}.defaultMode"), projected.default_mode);
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let at = format!("{at}.sources[{index}]");
        let given = [
            source.config_map.is_some(),
            source.secret.is_some(),
            source.downward_api.is_some(),
            source.service_account_token.is_some(),
            source.cluster_trust_bundle.is_some(),
            source.pod_certificate.is_some(),
        ];
        exactly_one(faults, &at, &given);
        if let Some(config_map) = &source.config_map {
            names::check(faults, &format!("{at}.configMap.name"), &config_map.name, Form::Subdomain);
            items(config_map.items.as_deref().unwrap_or_default(), &format!("{at}.configMap"), faults);
        }
        if let Some(secret) = &source.secret {
            names::check(faults, &format!("{at}.secret.name"), &secret.name, Form::Subdomain);
            items(secret.items.as_deref().unwrap_or_default(), &format!("{at}.secret"), faults);
        }
        if let Some(downward) = &source.downward_api {
            downward_files(
                downward.items.as_deref().unwrap_or_default(),
                &format!("{at}.downwardAPI"),
                faults,
            );
        }
    }
}

fn downward_files(items: &[DownwardAPIVolumeFile], at: &str, faults: &mut Vec<Fault>) {
    for (index, item) in items.iter().enumerate() {
        let at = format!("{at}.items[{index}]");
        descending(faults, &format!("{at}.path"), &item.path);
        mode(faults, &format!("{at}.mode"), item.mode);
        exactly_one(faults, &at, &[item.field_ref.is_some(), item.resource_field_ref.is_some()]);
        if let Some(field) = &item.field_ref {
            downward::field(field, downward::Place::File, &format!("{at}.fieldRef"), faults);
        }
        if let Some(resource) = &item.resource_field_ref {
            downward::resource(resource, downward::Place::File, &format!("{at}.resourceFieldRef"), faults);
        }
    }
}

fn items(items: &[KeyToPath], at: &str, faults: &mut Vec<Fault>) {
    for (index, item) in items.iter().enumerate() {
        let at = format!("{at}.items[{index}]");
        names::check(faults, &format!("{at}.key"), &item.key, Form::DataKey);
        descending(faults, &format!("{at}.path"), &item.path);
        mode(faults, &format!("{at}.mode"), item.mode);
    }
}

fn mode(faults: &mut Vec<Fault>, path: &str, mode: Option<i32>) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        tell(faults, path, format!("{mode} is not a file mode: 0 to 0777, which is 511 in JSON"));
    }
}

/// Tells of a path that is absolute or goes up.
pub(super) fn descending(faults: &mut Vec<Fault>, path: &str, given: &str) {
    if given.is_empty() {
        tell(faults, path, "required");
    } else if given.starts_with('/') || given.split('/').any(|part| part == "..") {
        tell(faults, path, format!("{given:?} is not a relative path without '..'"));
    }
}

/// Only what is read-only, and stays as it was mounted, can be so with all below it.
fn recursive_read_only(mount: &VolumeMount, at: &str, faults: &mut Vec<Fault>) {
    let path = format!("{at}.recursiveReadOnly");
    let asked = mount.recursive_read_only.as_deref();
    one_of(faults, &path, asked, &["Disabled", "IfPossible", "Enabled"]);
    if matches!(asked, None | Some("Disabled")) {
        return;
    }
    if mount.read_only != Some(true) {
        tell(faults, &path, "only with readOnly: true");
    }
    if !matches!(mount.mount_propagation.as_deref(), None | Some("None")) {
        tell(faults, path, "only with mountPropagation None");
    }
}

/// Checks a container's mounts against the volumes there are.
pub(super) fn mounts(container: &Container, at: &str, volumes: &BTreeSet<String>, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            tell(faults, format!("{at}.name"), "required");
        } else if !volumes.contains(&mount.name) {
            tell(
                faults,
                format!("{at}.name"),
                format!("{:?} is not the name of a volume of this pod", mount.name),
            );
        }
        match mount.mount_path.as_str() {
            "" => tell(faults, format!("{at}.mountPath"), "required"),
            path if path.contains(':') => {
                tell(faults, format!("{at}.mountPath"), format!("{path:?} has a ':'"))
            }
            path if !seen.insert(path) => {
                tell(faults, format!("{at}.mountPath"), format!("{path:?} is there twice"))
            }
            _ => {}
        }
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if given(&mount.sub_path) && given(&mount.sub_path_expr) {
            tell(faults, format!("{at}.subPathExpr"), "and subPath exclude each other");
        }
        for (field, path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
                descending(faults, &format!("{at}.{field}"), path);
            }
        }
        let propagation = mount.mount_propagation.as_deref();
        let modes = ["None", "HostToContainer", "Bidirectional"];
        one_of(faults, &format!("{at}.mountPropagation"), propagation, &modes);
        recursive_read_only(mount, &at, faults);
        let privileged = container.security_context.as_ref().and_then(|security| security.privileged);
        if propagation == Some("Bidirectional") && privileged != Some(true) {
            tell(faults, format!("{at}.mountPropagation"), "Bidirectional is for privileged containers");
        }
    }
}
