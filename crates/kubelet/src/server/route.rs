//! From method and path to what is asked: pure. Paths are matched as they are sent, never normalised: what authorization saw is what
//! is served. Upstream: pkg/kubelet/server/server.go.

use hyper::Method;

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/healthz`, or one check of it.
    Healthz(Option<&'a str>),
    /// `/pods`.
    Pods,
    /// `/runningpods/`.
    RunningPods,
    /// `/containerLogs/…`.
    Logs(Container<'a>),
    /// `/logs/…`: the machine's, by a path below their directory.
    SystemLogs(&'a str),
    /// `/exec/…`.
    Exec(Container<'a>),
    /// `/attach/…`.
    Attach(Container<'a>),
    /// `/run/…`.
    Run(Container<'a>),
    /// `/portForward/…`.
    PortForward(Pod<'a>),
    /// `/metrics…`.
    Metrics(Metrics),
    /// `/stats/summary`.
    StatsSummary,
    /// `/configz`.
    Configz,
}

/// Which page of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metrics {
    /// The kubelet's own.
    Own,
    /// What containers use, by cadvisor's names.
    Cadvisor,
    /// What metrics-server reads.
    Resource,
    /// How probes went.
    Probes,
}

/// A pod by the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pod<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// As the API server knows it, if it is said.
    pub(super) uid: Option<&'a str>,
}

/// A container by the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Container<'a> {
    pub(super) pod: Pod<'a>,
    pub(super) name: &'a str,
}

/// Why nothing is served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// There is no such path.
    Path,
    /// The path has no such method.
    Method,
    /// `enableDebuggingHandlers: false`.
    Disabled,
}

/// Which handlers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handlers {
    /// All of them.
    All,
    /// `enableDebuggingHandlers: false`: no logs of containers or the machine, exec, attach, port-forward and run.
    NoDebugging,
}

/// What needs `enableDebuggingHandlers`.
const DEBUGGING: [&str; 7] = ["run", "exec", "attach", "portForward", "containerLogs", "runningpods", "logs"];

/// Decides what a request asks for.
pub(super) fn route<'a>(method: &Method, path: &'a str, handlers: Handlers) -> Result<Route<'a>, Missed> {
    let mut parts = path.strip_prefix('/').ok_or(Missed::Path)?.split('/');
    let root = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    if handlers == Handlers::NoDebugging && DEBUGGING.contains(&root) {
        return Err(Missed::Disabled);
    }
    let route = match (root, rest.as_slice()) {
        ("healthz", []) => Route::Healthz(None),
        ("healthz", [check]) => Route::Healthz(Some(check)),
        ("configz", []) => Route::Configz,
        ("metrics", []) => Route::Metrics(Metrics::Own),
        ("metrics", ["cadvisor"]) => Route::Metrics(Metrics::Cadvisor),
        ("metrics", ["resource"]) => Route::Metrics(Metrics::Resource),
        ("metrics", ["probes"]) => Route::Metrics(Metrics::Probes),
        ("stats", ["summary"]) => Route::StatsSummary,
        ("pods", [] | [""]) => Route::Pods,
        ("runningpods", [] | [""]) => Route::RunningPods,
        ("containerLogs", [_, _, _]) => Route::Logs(container(&rest)?),
        ("logs", [_, ..]) => Route::SystemLogs(path.strip_prefix("/logs/").ok_or(Missed::Path)?),
        ("exec", _) => Route::Exec(container(&rest)?),
        ("attach", _) => Route::Attach(container(&rest)?),
        ("run", _) => Route::Run(container(&rest)?),
        ("portForward", _) => Route::PortForward(pod(&rest)?),
        _ => return Err(Missed::Path),
    };
    let allowed = match route {
        Route::Run(_) => *method == Method::POST,
        Route::Exec(_) | Route::Attach(_) | Route::PortForward(_) => {
            [Method::GET, Method::POST].contains(method)
        }
        // Upstream's older clients post what they want of a summary.
        Route::StatsSummary => [Method::GET, Method::POST].contains(method),
        _ => *method == Method::GET,
    };
    if allowed { Ok(route) } else { Err(Missed::Method) }
}

/// `NAMESPACE/POD[/UID]`.
fn pod<'a>(rest: &[&'a str]) -> Result<Pod<'a>, Missed> {
    let (namespace, name, uid) = match *rest {
        [namespace, name] => (namespace, name, None),
        [namespace, name, uid] => (namespace, name, Some(uid)),
        _ => return Err(Missed::Path),
    };
    if rest.iter().any(|part| part.is_empty()) {
        return Err(Missed::Path);
    }
    Ok(Pod { namespace, name, uid })
}

/// `NAMESPACE/POD[/UID]/CONTAINER`.
fn container<'a>(rest: &[&'a str]) -> Result<Container<'a>, Missed> {
    let (name, of_pod) = rest.split_last().filter(|(name, _)| !name.is_empty()).ok_or(Missed::Path)?;
    Ok(Container { pod: pod(of_pod)?, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Route<'_>, Missed> {
        route(&Method::GET, path, Handlers::All)
    }

    #[test]
    fn a_container_is_named_with_and_without_its_pods_uid() {
        let pod = Pod { namespace: "n", name: "p", uid: None };
        assert_eq!(get("/exec/n/p/c"), Ok(Route::Exec(Container { pod, name: "c" })));
        let pod = Pod { uid: Some("u"), ..pod };
        assert_eq!(get("/attach/n/p/u/c"), Ok(Route::Attach(Container { pod, name: "c" })));
        assert_eq!(get("/portForward/n/p/u"), Ok(Route::PortForward(pod)));
        assert_eq!(get("/containerLogs/n/p/u/c"), Err(Missed::Path));
    }

    #[test]
    fn what_is_not_exactly_a_path_is_none() {
        for path in ["", "exec/n/p/c", "/", "//exec/n/p/c", "/exec/n/p", "/exec/n//c", "/exec/n/p/", "/Pods"]
        {
            assert_eq!(get(path), Err(Missed::Path), "{path}");
        }
        for path in
            ["/metrics/../exec/n/p/c", "/pods/../exec/n/p/c", "/healthz/../exec/n/p/c", "/exec/n/p/c/d/e"]
        {
            assert_eq!(get(path), Err(Missed::Path), "{path}");
        }
        assert_eq!(get("/runningpods/"), Ok(Route::RunningPods));
        assert_eq!(get("/metrics/resource"), Ok(Route::Metrics(Metrics::Resource)));
        assert_eq!(get("/metrics/"), Err(Missed::Path));
        assert_eq!(get("/stats/summary"), Ok(Route::StatsSummary));
        assert_eq!(get("/logs/"), Ok(Route::SystemLogs("")));
        assert_eq!(get("/logs/pods/../x"), Ok(Route::SystemLogs("pods/../x")));
        assert_eq!(get("/logs"), Err(Missed::Path));
        assert_eq!(get("/healthz/syncloop"), Ok(Route::Healthz(Some("syncloop"))));
    }

    #[test]
    fn methods_are_those_of_upstream() {
        let route = |method, path| route(&method, path, Handlers::All);
        assert!(route(Method::POST, "/exec/n/p/c").is_ok());
        assert!(route(Method::POST, "/run/n/p/c").is_ok());
        assert_eq!(route(Method::GET, "/run/n/p/c"), Err(Missed::Method));
        assert_eq!(route(Method::POST, "/pods"), Err(Missed::Method));
        assert_eq!(route(Method::DELETE, "/exec/n/p/c"), Err(Missed::Method));
    }

    #[test]
    fn debugging_can_be_switched_off() {
        let off = |path| route(&Method::GET, path, Handlers::NoDebugging);
        for path in ["/exec/n/p/c", "/containerLogs/n/p/c", "/runningpods/", "/portForward/n/p", "/logs/"] {
            assert_eq!(off(path), Err(Missed::Disabled), "{path}");
        }
        assert_eq!(off("/pods"), Ok(Route::Pods));
    }
}
