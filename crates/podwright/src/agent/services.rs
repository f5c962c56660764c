//! From the proxy's report to what the kubelet tells containers: the Services with the addresses that they were given.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use manifest::Loaded;
use proxy::ProxyReport;
use tokio::sync::watch;

/// What is known before the proxy has said anything: without a Service in the manifests, that there is none.
pub(crate) fn first(manifests: &Loaded) -> Option<Arc<Vec<Service>>> {
    manifests.objects.services.is_empty().then(Arc::default)
}

/// Hands on every change, until `stop`.
pub(crate) async fn follow(
    mut reports: watch::Receiver<Arc<ProxyReport>>,
    services: watch::Sender<Option<Arc<Vec<Service>>>>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            Ok(()) = reports.changed() => {},
            () = &mut stop => return,
        }
        let now = reports.borrow_and_update().services.clone();
        services.send_if_modified(|known| {
            let changed = known.as_ref().is_none_or(|known| **known != now);
            *known = Some(Arc::new(now));
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_is_told_of_services_before_the_proxy_has_given_them_addresses() {
        let mut manifests = Loaded::default();
        assert!(first(&manifests).is_some_and(|services| services.is_empty()));
        let key = manifest::ObjectKey::new("default", "web");
        manifests.objects.services.insert(key, Arc::default());
        assert!(first(&manifests).is_none());
        let (reporter, reports) = watch::channel(Arc::default());
        let (sender, mut told) = watch::channel(None);
        let following = tokio::spawn(follow(reports, sender, std::future::pending()));
        reporter.send_replace(Arc::new(ProxyReport {
            services: vec![Service::default()],
            ..ProxyReport::default()
        }));
        let services = told.wait_for(Option::is_some).await.expect("told").clone();
        assert_eq!(services.map(|services| services.len()), Some(1));
        following.abort();
    }
}
