//! Upstream's critest 1.36 against a CRI server of ours or the reference: the same images, on machines of their own.
//!
//! It does not judge the outcome; `e2e/tests/critest.rs` does.

pub mod images;
pub mod report;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cri_server::{CriServer, Implementation};
use crate::registry::{Registry, write_only_mirror};
use crate::{parts, test_host};
use images::Images;
use report::Report;

/// The registries whose images critest names.
const REGISTRIES: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// Runs the whole suite (without its benchmarks) and keeps its output and its JSON report in `directory`. `focus`, a
/// regular expression, runs less.
///
/// # Errors
/// When a part does not come up, or critest ends without a report.
pub fn run(
    implementation: Implementation,
    images: &Images,
    directory: &Path,
    focus: Option<&str>,
) -> Result<Report> {
    let server = CriServer::start(implementation)?;
    let _registry = Registry::serve(&server.host, &images.storage())?;
    for registry in REGISTRIES {
        write_only_mirror(&server.registry_config_dir(), registry, Registry::ADDRESS)?;
    }
    let name = format!("{implementation:?}").to_lowercase();
    let file = directory.join(format!("critest-{name}.json"));
    let log = std::fs::File::create(directory.join(format!("critest-{name}.log")))
        .context("create critest's log")?;
    let endpoint = format!("unix://{}", server.socket().display());
    let mut command = server.host.command(parts::tool("critest"));
    command
        .args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint])
        .args(["-ginkgo.skip", "benchmark", "-ginkgo.no-color", "-ginkgo.v", "-ginkgo.json-report"])
        .arg(&file)
        .args(focus.map(|focus| format!("-ginkgo.focus={focus}")))
        .env("TMPDIR", server.host.path())
        .stdout(log.try_clone().context("clone the log's descriptor")?)
        .stderr(log);
    // A failed spec is in the report; the exit code says no more.
    command.status().context("run critest")?;
    let text = std::fs::read(&file).context("read critest's report: did it end early?")?;
    let value: Value = serde_json::from_slice(&text).context("parse critest's report")?;
    test_host::output_of(&mut server.crictl_command(&["rmp", "-af"])).context("remove what critest left")?;
    Report::of(&value)
}
