//! A standalone node with a directory of manifests, and the questions that stories ask of it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::test_host::eventually;
use crate::{Node, TestHost, image, parts};

/// A node on a host of its own, with a directory of manifests. It is reset at its end.
pub struct Story {
    /// The node, until the story takes it.
    pub node: Option<Node>,
    /// The watched directory.
    pub manifests: PathBuf,
    /// The machine.
    pub host: TestHost,
}

impl Story {
    /// Starts a node that knows the busybox image, with these manifests: the word IMAGE in them becomes its name.
    ///
    /// # Errors
    /// When the node does not come up.
    pub fn start(files: &[(&str, &str)]) -> Result<Self> {
        Self::start_on(TestHost::new()?, files, &[])
    }

    /// The same on a host that is prepared already, with more flags for `podwright run`.
    ///
    /// # Errors
    /// When the node does not come up.
    pub fn start_on(host: TestHost, files: &[(&str, &str)], flags: &[&str]) -> Result<Self> {
        let manifests = host.path().join("manifests");
        std::fs::create_dir(&manifests)?;
        let layout = image::busybox(host.path())?;
        let node = Node::run_with(&host, &manifests, flags)?;
        node.import(&host, &layout)?;
        let story = Self { node: Some(node), manifests, host };
        for (name, text) in files {
            story.write(name, text)?;
        }
        Ok(story)
    }

    /// Starts a node with one manifest, in which `SHARED` is a directory of the host, empty at first.
    ///
    /// # Errors
    /// When the node does not come up.
    pub fn sharing(manifest: &str) -> Result<Self> {
        let host = TestHost::new()?;
        let shared = host.path().join("shared");
        std::fs::create_dir(&shared)?;
        let text = manifest.replace("SHARED", &shared.display().to_string());
        Self::start_on(host, &[("pod.yaml", &text)], &[])
    }

    /// The lines that containers wrote to `log` in that directory.
    #[must_use]
    pub fn shared_log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.host.path().join("shared/log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Writes a manifest, or replaces it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let temporary = self.manifests.join(format!(".{name}"));
        std::fs::write(&temporary, text.replace("IMAGE", image::BUSYBOX))?;
        std::fs::rename(temporary, self.manifests.join(name)).context("write a manifest")
    }

    /// The node.
    ///
    /// # Panics
    /// When the story has taken it.
    pub fn node(&mut self) -> &mut Node {
        self.node.as_mut().expect("the node lives as long as the story")
    }

    /// Starts a crashed agent again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.node.as_mut().context("the node")?.restart(&self.host)
    }

    /// The List that `podwright status -o json` prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn status(&self) -> Result<Value> {
        self.node.as_ref().context("the node")?.status(&self.host)
    }

    /// The object of that kind and name in `podwright status -o json`.
    #[must_use]
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        let status = self.status().ok()?;
        let mut items = status["items"].as_array()?.iter();
        items.find(|item| item["kind"] == kind && item["metadata"]["name"] == name).cloned()
    }

    /// Waits until the pod is as `check` wants it.
    ///
    /// # Errors
    /// When it is not so in time: with its status.
    pub fn pod_until(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = eventually(what, || {
            last = self.object("Pod", name)?;
            check(&last).then(|| last.clone())
        });
        found.with_context(|| {
            format!("pod {name} is {}", serde_json::to_string_pretty(&last["status"]).unwrap_or_default())
        })
    }

    /// Waits until the pod is ready.
    ///
    /// # Errors
    /// When it is not in time: with its status.
    pub fn ready(&self, name: &str) -> Result<Value> {
        self.pod_until(name, "the pod is ready", |pod| condition(pod, "Ready") == Some("True"))
    }

    /// Reason and message of the pod's events, oldest first.
    ///
    /// # Errors
    /// When the status cannot be read.
    pub fn events(&self, pod: &str) -> Result<Vec<(String, String)>> {
        let status = self.status()?;
        let items = status["items"].as_array().context("items")?.iter();
        let events = items.filter(|item| item["kind"] == "Event" && item["involvedObject"]["name"] == pod);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(events.map(|event| (text(&event["reason"]), text(&event["message"]))).collect())
    }

    /// What `http://ADDRESS/` answers from inside the host.
    #[must_use]
    pub fn get(&self, address: &str) -> Option<String> {
        let url = format!("http://{address}/");
        self.host.run("curl", &["-sf", "--max-time", "5", &url]).ok().map(|text| text.trim().to_owned())
    }

    /// Runs crictl on the node.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn crictl(&self, arguments: &[&str]) -> Result<String> {
        let endpoint = format!("unix://{}", self.node.as_ref().context("the node")?.socket.display());
        let mut all = vec!["--timeout", "60s", "--runtime-endpoint", &endpoint];
        all.extend(arguments);
        self.host.run(parts::tool("crictl"), &all)
    }

    /// Runs a shell script in a container.
    ///
    /// # Errors
    /// When it fails: with what it wrote.
    pub fn exec(&self, id: &str, script: &str) -> Result<String> {
        self.crictl(&["exec", "-s", id, "sh", "-c", script])
    }

    /// The log of the pod's first container.
    ///
    /// # Errors
    /// When there is none.
    pub fn logs(&self, pod: &Value) -> Result<String> {
        self.crictl(&["logs", &container_id(pod)?])
    }

    /// What the first container of a pod wrote, when all have ended well; its last line is `end`.
    ///
    /// # Errors
    /// When the pod does not succeed, or the log does not end so.
    pub fn output(&self, name: &str) -> Result<String> {
        let pod = self.pod_until(name, "the pod succeeds", |pod| pod["status"]["phase"] == "Succeeded")?;
        eventually("its log is complete", || self.logs(&pod).ok().filter(|text| text.ends_with("end\n")))
    }

    /// Pid and start time of a container as CRI tells them.
    ///
    /// # Errors
    /// When CRI does not know it.
    pub fn facts(&self, id: &str) -> Result<(i64, String)> {
        let value: Value = serde_json::from_str(&self.crictl(&["inspect", id])?)?;
        let started = value["status"]["startedAt"].as_str().context("startedAt")?.to_owned();
        Ok((value["info"]["pid"].as_i64().context("a pid")?, started))
    }

    /// The file of the first attempt's log of that pod's container.
    ///
    /// # Errors
    /// When there is none.
    pub fn log_path(&self, pod: &str) -> Result<PathBuf> {
        let pattern = format!("find {} -path '*default_{pod}_*' -name '0.log'", self.host.path().display());
        Ok(self.host.run("sh", &["-c", &pattern])?.trim().into())
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.reset(&self.host);
        }
    }
}

/// The status of that condition.
#[must_use]
pub fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind)?["status"].as_str()
}

/// The id of the pod's first container.
///
/// # Errors
/// When it has none yet.
pub fn container_id(pod: &Value) -> Result<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("a container id")?;
    Ok(id.trim_start_matches("podwright://").to_owned())
}

/// A pod that serves its name on port 8080 and that Services find by `app: web`; `extra` are more fields of the container,
/// indented by four.
#[must_use]
pub fn web_pod(name: &str, extra: &str) -> String {
    // The server is process 1 and has no handler of SIGTERM: only SIGKILL ends it.
    let grace = match extra.contains("terminationGracePeriodSeconds") {
        true => "",
        false => "\n  terminationGracePeriodSeconds: 1",
    };
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels:
    app: web
spec:{grace}
  containers:
  - name: web
    image: IMAGE
    command: [/bin/sh, -c]
    args:
    - |
      mkdir -p /tmp/www && echo {name} > /tmp/www/index.html
      exec httpd -f -p 8080 -h /tmp/www
    ports:
    - name: http
      containerPort: 8080
{extra}"
    )
}
