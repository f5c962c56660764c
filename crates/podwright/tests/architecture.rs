//! The arrows between crates are those that ARCHITECTURE.md has, and no others.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// The code map of the document, whose third column says who may use which of our crates. `podwright` wires everything, `e2e` drives
/// anything.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let document = include_str!("../../../ARCHITECTURE.md");
    let rows = document.lines().skip_while(|line| *line != "## Code map").skip(1);
    let rows = rows.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let used = cells[3].split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        (cells[1].trim_matches('`').to_owned(), used.collect())
    };
    rows.map(row).collect()
}

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
    let arrows = arrows();
    let mut wrong = Vec::new();
    for (package, uses) in &all {
        if ["podwright", "e2e"].contains(&package.as_str()) {
            continue;
        }
        let Some(allowed) = arrows.get(package) else {
            wrong.push(format!("{package} is not in the architecture"));
            continue;
        };
        let others = uses.iter().filter(|used| ours.contains(used) && !allowed.contains(*used));
        wrong.extend(others.map(|used| format!("{package} → {used}")));
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
