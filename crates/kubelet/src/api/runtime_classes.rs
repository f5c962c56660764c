//! RuntimeClasses: which handler of the runtime each of them names.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use super::source::again;
use super::trouble::Trouble;

/// Follows every RuntimeClass, for ever.
pub(super) async fn follow(client: Client, classes: watch::Sender<Option<Arc<BTreeMap<String, String>>>>) {
    let mut all =
        std::pin::pin!(again(watcher(Api::<RuntimeClass>::all(client), watcher::Config::default())));
    let mut trouble = Trouble::new("the API server does not tell of RuntimeClasses; trying again");
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut listing = None;
    while let Some(event) = all.next().await {
        match event {
            Ok(Event::Init) => listing = Some(BTreeMap::new()),
            Ok(Event::InitApply(class)) => {
                listing.get_or_insert_default().insert(class.name_any(), class.handler);
            }
            Ok(Event::InitDone) => known = listing.take().unwrap_or_default(),
            Ok(Event::Apply(class)) => drop(known.insert(class.name_any(), class.handler)),
            Ok(Event::Delete(class)) => drop(known.remove(&class.name_any())),
            Err(error) => {
                trouble.meet(&error);
                continue;
            }
        }
        trouble.is_over();
        if listing.is_none() {
            classes.send_replace(Some(Arc::new(known.clone())));
        }
    }
}
