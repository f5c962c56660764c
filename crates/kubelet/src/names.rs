//! What a pod is called: its host name and its domain. Pure.

use crate::pod::model::Pod;

/// The kernel's limit for a host name.
const KERNEL_NAME: usize = 64;

/// `spec.hostnameOverride`, else `spec.hostname`, else the pod's name, 63 characters at most.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.source.spec.as_ref();
    let of_spec = spec.and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let asked = overriding(pod).map(str::to_owned).or(of_spec);
    let name = asked.unwrap_or_else(|| pod.name.clone());
    name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The name that the pod has whatever else it is called; it has no domain then.
fn overriding(pod: &Pod) -> Option<&str> {
    pod.source.spec.as_ref()?.hostname_override.as_deref().filter(|name| !name.is_empty())
}

/// `SUBDOMAIN.NAMESPACE.svc.CLUSTER` where the pod has a subdomain.
pub(crate) fn domain(pod: &Pod, cluster: &str) -> Option<String> {
    if overriding(pod).is_some() {
        return None;
    }
    let subdomain = pod.source.spec.as_ref().and_then(|spec| spec.subdomain.clone());
    let subdomain = subdomain.filter(|name| !name.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{cluster}", pod.namespace))
}

/// What the kernel says inside: with setHostnameAsFQDN the name with its domain.
///
/// # Errors
/// When that is longer than a host name can be.
pub(crate) fn kernel_name(pod: &Pod, cluster: &str) -> Result<String, String> {
    let name = hostname(pod);
    let as_fqdn = pod.source.spec.as_ref().and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    let Some(domain) = domain(pod, cluster).filter(|_| as_fqdn) else { return Ok(name) };
    let full = format!("{name}.{domain}");
    if full.len() > KERNEL_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({KERNEL_NAME} characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::model::tests::pod_of;

    #[test]
    fn names_follow_hostname_subdomain_and_fqdn() {
        let name = |mut spec: Value| {
            spec["containers"] = json!([{ "name": "a", "image": "i" }]);
            kernel_name(&pod_of(spec), "cluster.local")
        };
        for (spec, expect) in [
            (json!({}), "p"),
            (json!({ "hostname": "web" }), "web"),
            (json!({ "hostname": "web", "subdomain": "s" }), "web"),
            (
                json!({ "hostname": "web", "subdomain": "s", "setHostnameAsFQDN": true }),
                "web.s.default.svc.cluster.local",
            ),
            (json!({ "setHostnameAsFQDN": true }), "p"),
            (
                json!({ "hostname": "web", "subdomain": "s", "hostnameOverride": "db.example.com" }),
                "db.example.com",
            ),
            (json!({ "hostnameOverride": "" }), "p"),
        ] {
            assert_eq!(name(spec.clone()).as_deref(), Ok(expect), "{spec}");
        }
        let long = json!({ "hostname": "a".repeat(40), "subdomain": "s", "setHostnameAsFQDN": true });
        assert!(name(long).expect_err("too long").contains("68 characters requested"));
    }
}
