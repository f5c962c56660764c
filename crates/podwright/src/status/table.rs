//! What a person reads of a node: aligned tables made of v1 objects, in the columns that kubectl has. Pure.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;

use super::report::Report;

/// How much a row tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// Fits most terminals: long reasons are cut.
    Normal,
    /// Everything.
    Wide,
}

/// The longest reason in a normal table.
const REASON_MAX: usize = 72;

/// The whole of `podwright status`, as of `now`.
pub(crate) fn render(report: &Report, width: Width, now: Timestamp) -> String {
    let mut text = String::new();
    text += &match &report.agent {
        Some(agent) => format!("agent      running, pid {}, podwright {}\n", agent.pid, agent.version),
        None => "agent      not running; this is what its records say\n".to_owned(),
    };
    text += &node_lines(&report.node);
    section(&mut text, "pods", pods(&report.pods, width, now));
    section(&mut text, "services", services(&report.services, &report.endpoint_slices, width));
    if !report.problems.is_empty() {
        text += "\nproblems\n";
        for problem in &report.problems {
            let _ = writeln!(text, "  {problem}");
        }
    }
    text
}

fn section(text: &mut String, name: &str, table: Option<String>) {
    let _ = match table {
        Some(table) => write!(text, "\n{table}"),
        None => writeln!(text, "\nno {name}"),
    };
}

fn node_lines(node: &Node) -> String {
    let status = node.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "Ready"));
    let ready = match ready {
        Some(condition) if condition.status == "True" => "Ready".to_owned(),
        Some(condition) => format!(
            "NotReady: {}",
            condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or("unknown")
        ),
        None => "Unknown".to_owned(),
    };
    let address = status
        .and_then(|status| status.addresses.as_ref())
        .and_then(|addresses| addresses.iter().find(|address| address.type_ == "InternalIP"))
        .map_or("-", |address| &address.address);
    let pods = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()).unwrap_or("-");
    let name = node.metadata.name.as_deref().unwrap_or("-");
    format!("node       {name}  {ready}\naddress    {address}  pods {pods}\n")
}

/// One row for each pod; none at all is `None`.
pub(crate) fn pods(pods: &[Pod], width: Width, now: Timestamp) -> Option<String> {
    let mut rows = vec![vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "WHY"]];
    if width == Width::Wide {
        rows[0].insert(7, "UID");
    }
    let mut rows: Vec<Vec<String>> =
        rows.into_iter().map(|row| row.into_iter().map(str::to_owned).collect()).collect();
    rows.extend(pods.iter().map(|pod| pod_row(pod, width, now)));
    (rows.len() > 1).then(|| align(&rows))
}

fn pod_row(pod: &Pod, width: Width, now: Timestamp) -> Vec<String> {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.clone().unwrap_or_default();
    let wanted = pod.spec.as_ref().map_or(containers.len(), |spec| spec.containers.len());
    let ready = containers.iter().filter(|container| container.ready).count();
    let restarts: i32 = containers.iter().map(|container| container.restart_count).sum();
    let since = status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    let (word, why) = pod_state(pod);
    let mut row = vec![
        pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        pod.metadata.name.clone().unwrap_or_default(),
        format!("{ready}/{wanted}"),
        word,
        restarts.to_string(),
        since.map_or_else(|| "-".to_owned(), |time| age(now, time.0)),
        status.pod_ip.clone().unwrap_or_else(|| "-".to_owned()),
    ];
    if width == Width::Wide {
        row.push(pod.metadata.uid.clone().unwrap_or_else(|| "-".to_owned()));
    }
    row.push(shorten(&why, width));
    row
}

/// One pod in a few words, for lines of progress.
pub(crate) fn line(pod: &Pod) -> String {
    let (word, why) = pod_state(pod);
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
    match (ready, why.as_str()) {
        (true, _) => "Ready".to_owned(),
        (false, "") => word,
        (false, why) => format!("{word} ({})", shorten(why, Width::Normal)),
    }
}

/// The word kubectl would print, and the sentence behind it.
fn pod_state(pod: &Pod) -> (String, String) {
    let Some(status) = &pod.status else { return ("Pending".to_owned(), String::new()) };
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".to_owned());
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let stuck = containers.filter_map(container_trouble).next();
    if pod.metadata.deletion_timestamp.is_some() {
        return ("Terminating".to_owned(), String::new());
    }
    if let Some((word, why)) = stuck {
        return (word, why);
    }
    if let Some(reason) = &status.reason {
        return (reason.clone(), status.message.clone().unwrap_or_default());
    }
    match phase.as_str() {
        "Succeeded" => ("Completed".to_owned(), String::new()),
        "Failed" => ("Error".to_owned(), status.message.clone().unwrap_or_default()),
        _ => (phase, unready(pod)),
    }
}

/// Why a container does not run, if it should.
fn container_trouble(status: &ContainerStatus) -> Option<(String, String)> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().unwrap_or_else(|| "Waiting".to_owned());
        let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let why = match (&waiting.message, last) {
            (Some(message), _) => message.clone(),
            (None, Some(last)) => format!("last exit code {}", last.exit_code),
            (None, None) => String::new(),
        };
        return Some((reason, in_container(&status.name, &why)));
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.clone().unwrap_or_else(|| "Error".to_owned());
    let why = match &ended.message {
        Some(message) => message.clone(),
        None => format!("exit code {}", ended.exit_code),
    };
    Some((reason, in_container(&status.name, &why)))
}

fn in_container(name: &str, why: &str) -> String {
    if why.is_empty() { String::new() } else { format!("{name}: {why}") }
}

/// What the Ready condition says about a running pod that is not ready.
fn unready(pod: &Pod) -> String {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.and_then(|all| all.iter().find(|one| one.type_ == "Ready" && one.status != "True"));
    ready.and_then(|one| one.message.clone().or_else(|| one.reason.clone())).unwrap_or_default()
}

/// One row for each Service, with the endpoints it has now where any are known: a cluster's are kubectl's to show.
fn services(services: &[Service], slices: &[EndpointSlice], width: Width) -> Option<String> {
    let header = ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "PORT(S)", "ENDPOINTS"];
    let columns = if slices.is_empty() { header.len() - 1 } else { header.len() };
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(services.iter().map(|service| {
        let spec = service.spec.clone().unwrap_or_default();
        vec![
            service.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            service.metadata.name.clone().unwrap_or_default(),
            spec.type_.clone().unwrap_or_else(|| "ClusterIP".to_owned()),
            spec.cluster_ip.clone().unwrap_or_else(|| "-".to_owned()),
            ports(service),
            endpoints(service, slices, width),
        ]
    }));
    rows.iter_mut().for_each(|row| row.truncate(columns));
    (rows.len() > 1).then(|| align(&rows))
}

fn ports(service: &Service) -> String {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let text: Vec<String> = ports
        .into_iter()
        .flatten()
        .map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
                None => format!("{}/{protocol}", port.port),
            }
        })
        .collect();
    if text.is_empty() { "-".to_owned() } else { text.join(",") }
}

fn endpoints(service: &Service, slices: &[EndpointSlice], width: Width) -> String {
    let mine = slices.iter().filter(|slice| belongs(slice, service));
    let mut all: Vec<String> = mine.flat_map(slice_addresses).collect();
    all.sort();
    all.dedup();
    let shown = if width == Width::Wide { all.len() } else { 3 };
    match all.len() {
        0 => "<none>".to_owned(),
        count if count > shown => format!("{} + {} more...", all[..shown].join(","), count - shown),
        _ => all.join(","),
    }
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = |of: &Option<String>| of.clone().unwrap_or_else(|| "default".to_owned());
    label.is_some()
        && label == service.metadata.name.as_ref()
        && namespace(&slice.metadata.namespace) == namespace(&service.metadata.namespace)
}

fn slice_addresses(slice: &EndpointSlice) -> Vec<String> {
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
    ready
        .flat_map(|endpoint| endpoint.addresses.iter())
        .flat_map(|address| ports.iter().map(move |port| format!("{address}:{port}")))
        .collect()
}

/// Columns as wide as their widest cell, two spaces between them, nothing trailing.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", line.join("  ").trim_end());
    }
    text
}

/// The two largest units at most, as kubectl prints ages: `7s`, `3m12s`, `5h`, `12d`.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = (now.as_second() - then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{}m{}s", seconds / 60, seconds % 60),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn shorten(text: &str, width: Width) -> String {
    let line = text.lines().collect::<Vec<_>>().join(" ");
    if width == Width::Wide || line.chars().count() <= REASON_MAX {
        return line;
    }
    let cut: String = line.chars().take(REASON_MAX - 3).collect();
    format!("{}...", cut.trim_end())
}

#[cfg(test)]
mod tests;
