//! Our `proto/` has the names, numbers and types of upstream's own file: Go module k8s.io/cri-api.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto,
};

#[test]
#[ignore = "needs the Go module k8s.io/cri-api: hack/e2e.sh gives its path in PODWRIGHT_CRI_API"]
fn descriptors_are_identical_to_upstreams() {
    let upstream = PathBuf::from(
        std::env::var_os("PODWRIGHT_CRI_API").expect("PODWRIGHT_CRI_API names upstream's api.proto"),
    );
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/cri-v1.proto");
    let (ours, upstream) = (descriptors(&ours), descriptors(&upstream));
    assert_eq!(ours.package, upstream.package);
    compare("message", &messages(&ours.message_type), &messages(&upstream.message_type));
    compare("enum", &enums(&ours.enum_type), &enums(&upstream.enum_type));
    compare("service", &services(&ours.service), &services(&upstream.service));
}

fn descriptors(file: &Path) -> FileDescriptorProto {
    let directory = file.parent().expect("a directory");
    let set = protox::compile([file], [directory]).expect("it compiles");
    let mut file = set.file.into_iter().next_back().expect("a file");
    file.source_code_info = None;
    file
}

/// Tells each difference by name: the whole of two descriptors would be thousands of lines.
fn compare<T: PartialEq + std::fmt::Debug>(
    kind: &str,
    ours: &BTreeMap<String, T>,
    upstream: &BTreeMap<String, T>,
) {
    assert!(!upstream.is_empty(), "upstream has no {kind}");
    for (name, theirs) in upstream {
        let found = ours.get(name).unwrap_or_else(|| panic!("{kind} {name} is missing in proto/"));
        assert_eq!(found, theirs, "{kind} {name} differs from upstream's");
    }
    let extra: Vec<&String> = ours.keys().filter(|name| !upstream.contains_key(*name)).collect();
    assert!(extra.is_empty(), "{kind} that upstream does not have: {extra:?}");
}

fn messages(all: &[DescriptorProto]) -> BTreeMap<String, DescriptorProto> {
    all.iter().map(|message| (message.name().to_owned(), message.clone())).collect()
}

fn enums(all: &[EnumDescriptorProto]) -> BTreeMap<String, EnumDescriptorProto> {
    all.iter().map(|one| (one.name().to_owned(), one.clone())).collect()
}

/// Each method by service and name; options say nothing about the wire.
fn services(all: &[ServiceDescriptorProto]) -> BTreeMap<String, MethodDescriptorProto> {
    let of = |service: &ServiceDescriptorProto| {
        let name = service.name().to_owned();
        let methods = service.method.clone().into_iter();
        methods
            .map(move |mut method| {
                method.options = None;
                (format!("{name}.{}", method.name()), method)
            })
            .collect::<Vec<_>>()
    };
    all.iter().flat_map(of).collect()
}
