//! Which ConfigMaps and Secrets a pod refers to: pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1;

/// The kinds that pods take data from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

/// An object that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Everything a pod refers to, optional or not.
pub(crate) fn of_pod(pod: &v1::Pod) -> BTreeSet<Reference> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names = Vec::new();
    spec.volumes.iter().flatten().for_each(|volume| of_volume(volume, &mut names));
    let plain = spec.init_containers.iter().flatten().chain(&spec.containers);
    plain.for_each(|container| of_environment(&container.env, &container.env_from, &mut names));
    for container in spec.ephemeral_containers.iter().flatten() {
        of_environment(&container.env, &container.env_from, &mut names);
    }
    names.extend(spec.image_pull_secrets.iter().flatten().map(|secret| (Kind::Secret, secret.name.clone())));
    let named = names.into_iter().filter(|(_, name)| !name.is_empty());
    named.map(|(kind, name)| Reference { kind, namespace: namespace.clone(), name }).collect()
}

fn of_volume(volume: &v1::Volume, names: &mut Vec<(Kind, String)>) {
    if let Some(source) = &volume.config_map {
        names.push((Kind::ConfigMap, source.name.clone()));
    }
    if let Some(source) = &volume.secret {
        names.push((Kind::Secret, source.secret_name.clone().unwrap_or_default()));
    }
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for source in sources {
        if let Some(source) = &source.config_map {
            names.push((Kind::ConfigMap, source.name.clone()));
        }
        if let Some(source) = &source.secret {
            names.push((Kind::Secret, source.name.clone()));
        }
    }
}

fn of_environment(
    env: &Option<Vec<v1::EnvVar>>,
    from: &Option<Vec<v1::EnvFromSource>>,
    names: &mut Vec<(Kind, String)>,
) {
    for source in env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        names.extend(source.config_map_key_ref.iter().map(|key| (Kind::ConfigMap, key.name.clone())));
        names.extend(source.secret_key_ref.iter().map(|key| (Kind::Secret, key.name.clone())));
    }
    for source in from.iter().flatten() {
        names.extend(source.config_map_ref.iter().map(|map| (Kind::ConfigMap, map.name.clone())));
        names.extend(source.secret_ref.iter().map(|secret| (Kind::Secret, secret.name.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_can_name_an_object_is_looked_at() {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p", "namespace": "n" },
            "spec": {
                "volumes": [
                    { "name": "a", "configMap": { "name": "map-volume" } },
                    { "name": "b", "secret": { "secretName": "secret-volume" } },
                    { "name": "c", "projected": { "sources": [
                        { "configMap": { "name": "map-projected" } }, { "secret": { "name": "secret-projected" } },
                        { "serviceAccountToken": { "path": "t" } },
                    ] } },
                    { "name": "d", "emptyDir": {} },
                ],
                "initContainers": [{ "name": "i", "envFrom": [{ "configMapRef": { "name": "map-from" } }, { "secretRef": { "name": "secret-from" } }] }],
                "containers": [{ "name": "c", "env": [
                    { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "map-key", "key": "k" } } },
                    { "name": "B", "valueFrom": { "secretKeyRef": { "name": "secret-key", "key": "k" } } },
                    { "name": "C", "value": "c" },
                ] }],
                "ephemeralContainers": [{ "name": "e", "envFrom": [{ "configMapRef": { "name": "map-debug" } }] }],
                "imagePullSecrets": [{ "name": "secret-pull" }, {}],
            },
        }))
        .expect("a pod");
        let (maps, secrets): (Vec<_>, Vec<_>) =
            of_pod(&pod).into_iter().partition(|reference| reference.kind == Kind::ConfigMap);
        let names = |all: Vec<Reference>| all.into_iter().map(|reference| reference.name).collect::<Vec<_>>();
        assert!(maps.iter().chain(&secrets).all(|reference| reference.namespace == "n"));
        assert_eq!(names(maps), ["map-debug", "map-from", "map-key", "map-projected", "map-volume"]);
        assert_eq!(
            names(secrets),
            ["secret-from", "secret-key", "secret-projected", "secret-pull", "secret-volume"]
        );
    }
}
