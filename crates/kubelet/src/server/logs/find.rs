//! Which container's log a name means, from the pod's status: pure. Upstream: pkg/kubelet/kubelet_pods.go,
//! validateContainerLogStatus.

use k8s_openapi::api::core::v1;

/// Which one of a container's lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Latest,
    Previous,
}

/// The id of the container; else what people are told.
pub(super) fn container_id(pod: &v1::Pod, name: &str, which: Which) -> Result<String, String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let what = format!("container {name:?} in pod {pod_name:?}");
    let status = pod.status.as_ref();
    let all = status.iter().flat_map(|status| {
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
    });
    let status = all.flatten().flatten().find(|status| status.name == name);
    let status = status.ok_or_else(|| format!("{what} is not available"))?;
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last_id = last.and_then(|last| last.container_id.as_deref()).filter(|id| !id.is_empty());
    if which == Which::Previous {
        let missing = || format!("previous terminated container {name:?} in pod {pod_name:?} not found");
        return last_id.map(id_of).ok_or_else(missing);
    }
    let state = status.state.clone().unwrap_or_default();
    let is_over = || format!("{what} is terminated");
    if state.running.is_some() {
        return status.container_id.as_deref().map(id_of).ok_or_else(|| format!("{what} is not available"));
    }
    if let Some(ended) = &state.terminated {
        let own = ended.container_id.as_deref().filter(|id| !id.is_empty());
        return own.or(last_id).map(id_of).ok_or_else(is_over);
    }
    if last.is_some() {
        return last_id.map(id_of).ok_or_else(is_over);
    }
    let waits = format!("{what} is waiting to start");
    Err(match state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()) {
        Some("ErrImagePull") => format!("{waits}: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{waits}: trying and failing to pull image"),
        Some(reason) => format!("{waits}: {reason}"),
        None => format!("{waits} - no logs yet"),
    })
}

/// Without the runtime's name.
fn id_of(id: &str) -> String {
    id.split_once("://").map_or(id, |(_, id)| id).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn find(status: Value, which: Which) -> Result<String, String> {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "status": { "initContainerStatuses": [status] },
        }));
        container_id(&pod.unwrap(), "c", which)
    }

    fn status(state: Value, last: Value) -> Value {
        json!({
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "containerID": "containerd://now", "state": state, "lastState": last,
        })
    }

    #[test]
    fn the_latest_life_of_which_there_is_a_log_is_meant() {
        let ended = |id: &str| json!({ "terminated": { "exitCode": 1, "containerID": id } });
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
        for (state, last, expect) in [
            (json!({ "running": {} }), json!({}), Ok("now")),
            (ended("podwright://a"), json!({}), Ok("a")),
            (ended(""), ended("x://b"), Ok("b")),
            (ended(""), json!({}), Err("container \"c\" in pod \"p\" is terminated")),
            (waiting("CrashLoopBackOff"), ended("x://b"), Ok("b")),
            (
                waiting("ContainerCreating"),
                json!({}),
                Err("container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ),
            (
                waiting("ImagePullBackOff"),
                json!({}),
                Err("container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"),
            ),
            (json!({}), json!({}), Err("container \"c\" in pod \"p\" is waiting to start - no logs yet")),
        ] {
            let found = find(status(state.clone(), last), Which::Latest);
            assert_eq!(found.as_deref().map_err(String::as_str), expect, "{state}");
        }
    }

    #[test]
    fn the_previous_life_is_the_one_that_ended_before() {
        let ended = json!({ "terminated": { "exitCode": 1, "containerID": "x://b" } });
        let running = || json!({ "running": {} });
        assert_eq!(find(status(running(), ended), Which::Previous), Ok("b".to_owned()));
        let missing = "previous terminated container \"c\" in pod \"p\" not found".to_owned();
        assert_eq!(find(status(running(), json!({})), Which::Previous), Err(missing));
        assert_eq!(
            container_id(&v1::Pod::default(), "c", Which::Latest),
            Err("container \"c\" in pod \"\" is not available".to_owned())
        );
    }
}
