//! RuntimeClasses: which handler of the runtime each of them names.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use super::source::follow_all;
use super::trouble::Trouble;

/// Follows every RuntimeClass, for ever.
pub(super) async fn follow(client: Client, classes: watch::Sender<Option<Arc<BTreeMap<String, String>>>>) {
    let all = watcher(Api::<RuntimeClass>::all(client), watcher::Config::default());
    let trouble = Trouble::new("the API server does not tell of RuntimeClasses; trying again");
    let entry = |class: RuntimeClass| (class.name_any(), class.handler);
    follow_all(all, trouble, entry, |known| drop(classes.send_replace(Some(Arc::new(known.clone()))))).await;
}
