//! Which resources are spoken of where. Upstream: component-helpers/resource, pkg/apis/core/validation.

/// What a pod as a whole may ask for (`spec.resources`).
#[must_use]
pub fn is_for_whole_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// What a container is told of by a `resourceFieldRef`.
#[must_use]
pub fn is_told(name: &str) -> bool {
    is_for_whole_pods(name) || name == "ephemeral-storage"
}
