//! `podwright image`: asks a running agent, or works on the files itself when none runs.

pub(crate) mod auth_file;
pub(crate) mod built_in;
pub(crate) mod ops;
pub(crate) mod preload;
pub(crate) mod wire;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use crate::admin::client::Client;
use crate::cli::{ImageArgs, ImageCommand, ImageFormat, NodeArgs};
use crate::lock::LockError;
use crate::node::Node;
use crate::output::{self, ProgressLine};
use crate::status::table::align;
use ops::Hear;
use wire::{Request, Row, Update};

/// How long an agent that starts may take until it answers.
const AGENT_STARTS: Duration = Duration::from_secs(10);
/// How often it is looked whether it does.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Does what the command line says.
pub(crate) fn main(args: &ImageArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: &ImageArgs) -> anyhow::Result<()> {
    match &args.command {
        ImageCommand::Import { path, name, pin, node } => {
            let path = std::path::absolute(path).context("make the path absolute")?;
            let done = work(node, Request::Import { path, name: name.clone(), pin: *pin }).await?;
            done.images.iter().for_each(|row| output::line(&format!("{}  {}", row.id, title(row))));
        }
        ImageCommand::Pull { reference, creds, authfile, node } => {
            let credentials = match creds {
                Some(creds) => Some(creds.clone()),
                None => auth_file::credentials(authfile.as_deref(), reference)?,
            };
            let request = Request::Pull { reference: reference.clone(), credentials };
            let done = work(node, request).await?;
            done.images.iter().for_each(|row| output::line(&row.id));
        }
        ImageCommand::Ls { output: format, node } => {
            let rows = work(node, Request::List).await?.images;
            match format {
                ImageFormat::Table => output::text(&table(&rows)),
                ImageFormat::Json => output::line(&serde_json::to_string_pretty(&rows)?),
            }
        }
        ImageCommand::Rm { images, node } => {
            for image in images {
                let done = work(node, Request::Remove { image: image.clone() }).await?;
                done.removed.iter().for_each(|image| output::line(&format!("removed {image}")));
            }
        }
    }
    Ok(())
}

/// What came of an order.
#[derive(Debug, Default)]
struct Done {
    images: Vec<Row>,
    removed: Vec<String>,
    failed: Option<String>,
}

async fn work(node: &NodeArgs, request: Request) -> anyhow::Result<Done> {
    let node = Node::here(node)?;
    let heard = Arc::new(Mutex::new((Done::default(), ProgressLine::new())));
    let hear: Hear = {
        let heard = Arc::clone(&heard);
        Arc::new(move |update| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match update {
                Update::Progress { text } => heard.1.show(&text),
                Update::Image(row) => heard.0.images.push(row),
                Update::Removed { image } => heard.0.removed.push(image),
                Update::Failed { message } => heard.0.failed = Some(message),
            }
        })
    };
    let worked = by_agent_or_on_files(&node, &request, &hear).await;
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.1.clear();
    worked?;
    let done = std::mem::take(&mut heard.0);
    match done.failed {
        Some(message) => bail!(message),
        None => Ok(done),
    }
}

/// Asks the agent that runs, or works on the files where none does. One that starts has taken the files and does not answer yet, and one
/// that ends does not answer any more: that is awaited.
async fn by_agent_or_on_files(node: &Node, request: &Request, hear: &Hear) -> anyhow::Result<()> {
    let until = Instant::now() + AGENT_STARTS;
    loop {
        if let Some(mut agent) = Client::connect(node).await? {
            return agent.image(request, |update| hear(update)).await;
        }
        match ops::apply_to_files(node, request.clone(), hear).await {
            Err(error) if is_held(&error) && Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
            worked => return worked,
        }
    }
}

/// Whether somebody else has the node's files; then nothing was done.
fn is_held(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(LockError::Held { .. }))
}

/// The name of an image that has one.
fn title(row: &Row) -> &str {
    row.repo_tags.first().or(row.repo_digests.first()).map_or("<none>", String::as_str)
}

fn table(rows: &[Row]) -> String {
    let mut cells = vec![["IMAGE", "TAG", "IMAGE ID", "SIZE"].map(str::to_owned).to_vec()];
    for row in rows {
        let names: Vec<&str> = match row.repo_tags.as_slice() {
            [] => vec![title(row)],
            tags => tags.iter().map(String::as_str).collect(),
        };
        for name in names {
            let (name, tag) = split(name);
            let id = row.id.strip_prefix("sha256:").unwrap_or(&row.id);
            let short = id.get(..13).unwrap_or(id).to_owned();
            cells.push(vec![name.to_owned(), tag.to_owned(), short, output::bytes(row.size)]);
        }
    }
    align(&cells)
}

/// Repository and tag; a colon before the last slash is a port.
fn split(name: &str) -> (&str, &str) {
    if let Some((repository, _)) = name.split_once('@') {
        return (repository, "<none>");
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "<none>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_crictl_s_columns_and_one_row_per_tag() {
        let row = |tags: &[&str], digests: &[&str]| Row {
            id: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
            size: 4_200_000,
        };
        let rows =
            [row(&["localhost:5000/a:1", "docker.io/library/b:2"], &[]), row(&[], &["r.example/c@sha256:1"])];
        let expect = "\
IMAGE                TAG     IMAGE ID       SIZE
localhost:5000/a     1       0123456789abc  4.2 MB
docker.io/library/b  2       0123456789abc  4.2 MB
r.example/c          <none>  0123456789abc  4.2 MB
";
        assert_eq!(table(&rows), expect);
    }
}
