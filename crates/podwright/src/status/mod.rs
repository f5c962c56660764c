//! `podwright status`: asks the running agent, or reads what it left.

pub(crate) mod offline;
pub(crate) mod report;
pub(crate) mod sandboxes;
pub(crate) mod table;

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;

use crate::admin::client::Client;
use crate::cli::{StatusArgs, StatusFormat};
use crate::node::Node;
use crate::output;
use report::Report;
use table::Width;

/// Shows the node in the form that was asked for.
pub(crate) fn main(args: &StatusArgs) -> anyhow::Result<()> {
    let node = Node::here(&args.node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(report(&node))?;
    match args.output {
        StatusFormat::Table => output::text(&table::render(&report, Width::Normal, now())),
        StatusFormat::Wide => output::text(&table::render(&report, Width::Wide, now())),
        StatusFormat::Json => {
            remarks(&report);
            output::line(&serde_json::to_string_pretty(&report.to_list()?)?);
        }
        StatusFormat::Yaml => {
            remarks(&report);
            output::text(&serde_saphyr::to_string(&report.to_list()?).context("write YAML")?);
        }
    }
    Ok(())
}

async fn report(node: &Node) -> anyhow::Result<Report> {
    match Client::connect(node).await? {
        Some(mut agent) => agent.status().await,
        None => offline::report(node),
    }
}

/// What has no place in a List goes to stderr.
fn remarks(report: &Report) {
    if report.agent.is_none() {
        output::note("the agent is not running; this is what its records say");
    }
    report.problems.iter().for_each(|problem| output::note(problem));
}

#[expect(clippy::disallowed_methods, reason = "ages are shown as of now")]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
}
