//! Telling in the log what is wrong with manifests and Services, once when it appears.

use std::collections::BTreeSet;
use std::sync::Arc;

use manifest::Loaded;
use proxy::ProxyReport;
use tokio::sync::watch;

/// Follows both reports until `stop` or until their writers are gone.
pub(crate) async fn tell(
    mut manifests: watch::Receiver<Arc<Loaded>>,
    mut services: watch::Receiver<Arc<ProxyReport>>,
    stop: impl Future<Output = ()>,
) {
    let mut told = BTreeSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let mut now: BTreeSet<String> =
            manifests.borrow_and_update().problems.iter().map(ToString::to_string).collect();
        now.extend(services.borrow_and_update().problems.iter().map(ToString::to_string));
        for problem in now.difference(&told) {
            tracing::warn!("{problem}");
        }
        told = now;
        tokio::select! {
            Ok(()) = manifests.changed() => {},
            Ok(()) = services.changed() => {},
            () = &mut stop => return,
        }
    }
}
