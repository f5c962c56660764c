//! Mistakes and how they are told.

use super::*;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::json;

fn faults<T: DeserializeOwned>(value: Value, values: Values) -> Vec<String> {
    let (_, faults) = decode::<T>(value, values);
    faults.into_iter().map(|(path, message)| format!("{path}: {message}")).collect()
}

#[test]
fn every_mistake_of_a_document_is_told_with_its_path() {
    let pod = json!({
        "metadata": {"name": 5, "labels": {"a/b": true}},
        "spec": {
            "containers": [
                {"name": "a", "ports": [{"containerPort": "80"}, 7, {"containerPort": 81, "nmae": "x"}]},
                "b",
                {"args": ["x", 1, "y", {}], "resources": {"limits": {"cpu": [], "memory": 1.5}}},
            ],
            "hostNetwork": "yes",
            "contaners": [],
        },
    });
    let expect = [
        "metadata.labels[a/b]: expected a string, found the boolean true: put it in quotes",
        "metadata.name: expected a string, found the number 5: put it in quotes",
        "spec.containers[0].ports[0].containerPort: expected an integer, found the string \"80\": write a number without quotes",
        "spec.containers[0].ports[1]: expected an object (ContainerPort), found the number 7",
        "spec.containers[1]: expected an object (Container), found the string \"b\"",
        "spec.containers[2].args[1]: expected a string, found the number 1: put it in quotes",
        "spec.containers[2].args[3]: expected a string, found an object",
        "spec.containers[2].resources.limits.cpu: expected a quantity, found a list",
        "spec.hostNetwork: expected true or false, found the string \"yes\": write it without quotes",
        "spec.containers[0].ports[2].nmae: unknown field",
        "spec.contaners: unknown field",
    ];
    let mut found = faults::<Pod>(pod, Values::Shown);
    let mut expect: Vec<String> = expect.into_iter().map(str::to_owned).collect();
    found.sort();
    expect.sort();
    assert_eq!(found, expect);
}

#[test]
fn a_secret_is_never_quoted() {
    let secret =
        json!({"metadata": {"name": "s"}, "stringData": {"password": 12345}, "data": {"token": true}});
    let found = faults::<Secret>(secret, Values::Hidden).join("\n");
    assert!(
        found.contains("stringData.password: expected a string, found a number: put it in quotes"),
        "{found}"
    );
    assert!(!found.contains("12345"), "{found}");
}

#[test]
fn a_good_document_has_no_faults_and_nulls_are_absent_fields() {
    let map =
        json!({"metadata": {"name": "m", "creationTimestamp": null}, "data": {"a": "b"}, "immutable": null});
    let (map, faults) = decode::<ConfigMap>(map, Values::Shown);
    assert_eq!(faults, []);
    assert_eq!(map.and_then(|map| map.data).map(|data| data.len()), Some(1));
}
