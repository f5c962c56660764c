//! The arrows between crates are those that ARCHITECTURE.md has, and no others.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Who may use which of our crates. `podwright` wires everything, `e2e` drives anything.
const ARROWS: &[(&str, &[&str])] = &[
    ("apiserver", &["host"]),
    ("cni", &["host", "hostnet"]),
    ("cri", &[]),
    ("host", &[]),
    ("hostnet", &["host"]),
    ("kubelet", &["cri", "host", "manifest"]),
    ("manifest", &[]),
    ("oci", &["host"]),
    ("podnet", &["apiserver", "hostnet"]),
    ("proxy", &["apiserver", "hostnet", "manifest"]),
    ("runtime", &["cni", "cri", "host", "oci"]),
];

/// Who may know Kubernetes objects; the binary passes them on from watch channels to people.
const KUBERNETES: &[&str] = &["apiserver", "e2e", "kubelet", "manifest", "podnet", "podwright", "proxy"];

fn metadata() -> Metadata {
    MetadataCommand::new().no_deps().exec().expect("cargo metadata")
}

/// Every package with the names of what it is built with; its tests may use more.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let packages = metadata().packages;
    let names = |package: &cargo_metadata::Package| {
        let built = package.dependencies.iter().filter(|one| one.kind != DependencyKind::Development);
        built.map(|dependency| dependency.name.clone()).collect()
    };
    packages.iter().map(|package| (package.name.to_string(), names(package))).collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let all = dependencies();
    let ours: BTreeSet<&String> = all.keys().collect();
    let mut wrong = Vec::new();
    for (package, uses) in &all {
        if ["podwright", "e2e"].contains(&package.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == package) else {
            wrong.push(format!("{package} is not in the architecture"));
            continue;
        };
        let arrows = uses.iter().filter(|used| ours.contains(used) && !allowed.contains(&used.as_str()));
        wrong.extend(arrows.map(|used| format!("{package} → {used}")));
    }
    assert!(wrong.is_empty(), "arrows that ARCHITECTURE.md does not have: {wrong:#?}");
}

#[test]
fn only_the_upper_half_knows_kubernetes_objects() {
    let all = dependencies();
    let knows = |uses: &BTreeSet<String>| uses.contains("k8s-openapi") || uses.contains("kube");
    let wrong: Vec<_> =
        all.iter().filter(|(name, uses)| knows(uses) && !KUBERNETES.contains(&name.as_str())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn system_calls_have_no_async_runtime_in_host_and_oci() {
    let all = dependencies();
    for package in ["host", "oci"] {
        assert!(!all[package].contains("tokio"), "{package} uses tokio");
    }
}
