//! Work on the image store, told line by line: in the agent for the admin socket, or in the CLI where no agent runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use runtime::images::{Auth, Image, ImageStore, Progress, Retention};

use super::wire::{Request, Row, Update};
use crate::lock::NodeLock;
use crate::node::Node;
use crate::output;

/// Who hears how the work goes.
pub(crate) type Hear = Arc<dyn Fn(Update) + Send + Sync>;

/// Does what `request` asks.
pub(crate) async fn apply(store: &ImageStore, request: Request, hear: &Hear) -> anyhow::Result<()> {
    let image = |image: &Image| hear(Update::Image(row(image)));
    match request {
        Request::Import { path, name, pin } => {
            let progress = tell(Arc::clone(hear), "importing");
            let retention = if pin { Retention::Pinned } else { Retention::Collectable };
            let images = store.import(&path, name.as_deref(), retention, progress).await?;
            images.iter().for_each(|imported| image(imported));
        }
        Request::Pull { reference, credentials } => {
            let auth = credentials.as_deref().map(auth).transpose()?;
            let id = store.pull(&reference, auth, tell(Arc::clone(hear), "pulling")).await?;
            image(&*store.get(&id).with_context(|| format!("find {id}, which was just pulled"))?);
        }
        Request::List => store.list().iter().for_each(|listed| image(listed)),
        Request::Remove { image } => {
            if !store.remove(&image).await? {
                bail!("there is no image {image}");
            }
            hear(Update::Removed { image });
        }
    }
    Ok(())
}

/// The same without an agent: the files are locked against one that would start meanwhile.
pub(crate) async fn apply_to_files(node: &Node, request: Request, hear: &Hear) -> anyhow::Result<()> {
    let _lock = NodeLock::take(node)?;
    let store = ImageStore::open(&node.root, &node.registry_config_dir).await?;
    apply(&store, request, hear).await?;
    Ok(store.settle().await?)
}

fn row(image: &Image) -> Row {
    Row {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
    }
}

fn auth(credentials: &str) -> anyhow::Result<Auth> {
    let (username, password) =
        credentials.split_once(':').context("the credentials have the form USER:PASSWORD")?;
    Ok(Auth { username: username.to_owned(), password: password.to_owned(), ..Auth::default() })
}

/// Turns the store's progress into one line of text.
fn tell(hear: Hear, verb: &'static str) -> impl Fn(Progress) + Send + Sync + 'static {
    let state = Mutex::new(Layers::default());
    move |progress| {
        let mut layers = state.lock().unwrap_or_else(PoisonError::into_inner);
        hear(Update::Progress { text: layers.after(verb, progress) });
    }
}

/// How far each layer is.
#[derive(Debug, Default)]
struct Layers {
    /// By digest: bytes so far, bytes in all.
    bytes: BTreeMap<String, (u64, u64)>,
}

impl Layers {
    /// Takes one more step, and says where that leads.
    fn after(&mut self, verb: &str, progress: Progress) -> String {
        match progress {
            Progress::Resolved { layers, .. } => {
                self.bytes = layers.into_iter().map(|(digest, total)| (digest, (0, total))).collect();
            }
            Progress::Layer { digest, received, total } => drop(self.bytes.insert(digest, (received, total))),
            Progress::LayerExists { digest } | Progress::LayerDone { digest } => {
                if let Some((received, total)) = self.bytes.get_mut(&digest) {
                    *received = *total;
                }
            }
            Progress::Committing => return format!("{verb}: writing to disk"),
        }
        let done = self.bytes.values().filter(|(received, total)| received >= total).count();
        let received = self.bytes.values().map(|(received, _)| received).sum();
        let total = self.bytes.values().map(|(_, total)| total).sum();
        format!(
            "{verb}: {done} of {} layers, {} of {}",
            self.bytes.len(),
            output::bytes(received),
            output::bytes(total)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_adds_up_over_layers() {
        let mut layers = Layers::default();
        let resolved =
            Progress::Resolved { digest: "d".into(), layers: vec![("a".into(), 1000), ("b".into(), 3000)] };
        assert_eq!(layers.after("pulling", resolved), "pulling: 0 of 2 layers, 0 B of 4.0 kB");
        let part = Progress::Layer { digest: "b".into(), received: 500, total: 3000 };
        assert_eq!(layers.after("pulling", part), "pulling: 0 of 2 layers, 500 B of 4.0 kB");
        let exists = Progress::LayerExists { digest: "a".into() };
        assert_eq!(layers.after("pulling", exists), "pulling: 1 of 2 layers, 1.5 kB of 4.0 kB");
        assert_eq!(layers.after("pulling", Progress::Committing), "pulling: writing to disk");
    }

    #[test]
    fn credentials_need_a_colon() {
        assert!(auth("user").is_err());
        assert_eq!(auth("user:pa:ss").unwrap().password, "pa:ss");
    }
}
