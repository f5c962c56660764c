//! Lists: which entries a filter wants, and a list in pieces for what does not fit into one message. Pure.

use std::collections::HashMap;
use std::pin::Pin;

use cri::v1;
use tokio_stream::Stream;
use tonic::Status;

/// How many entries one message of a streamed list has: an entry of a few kilobytes stays far below gRPC's 16 MiB.
const PIECE: usize = 500;

/// Ids match by their beginning; the empty filter matches all.
pub(crate) fn matches_id(id: &str, wanted: &str) -> bool {
    id.starts_with(wanted)
}

/// Whether all wanted labels are there with their values.
pub(crate) fn has_labels(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    #[expect(clippy::iter_over_hash_type, reason = "whether all hold does not depend on the order")]
    for (key, value) in wanted {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    true
}

/// Whether ListPodSandbox tells of a sandbox.
pub(crate) fn wants_sandbox(filter: &v1::PodSandboxFilter, item: &v1::PodSandbox) -> bool {
    matches_id(&item.id, &filter.id)
        && filter.state.is_none_or(|wanted| wanted.state == item.state)
        && has_labels(&item.labels, &filter.label_selector)
}

/// Whether ListContainers tells of a container.
pub(crate) fn wants_container(filter: &v1::ContainerFilter, item: &v1::Container) -> bool {
    matches_id(&item.id, &filter.id)
        && matches_id(&item.pod_sandbox_id, &filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state == item.state)
        && has_labels(&item.labels, &filter.label_selector)
}

/// A stream of messages, each made of some entries; an empty list is a stream without a message.
pub(crate) fn in_pieces<T, R>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> R + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let mut items = items.into_iter();
    let pieces = std::iter::from_fn(move || {
        let piece: Vec<T> = items.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then_some(piece)
    });
    Box::pin(tokio_stream::iter(pieces.map(move |piece| Ok(message(piece)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn a_long_list_comes_in_pieces_and_whole() {
        let sizes = |count: usize| async move {
            let items: Vec<usize> = (0..count).collect();
            in_pieces(items, |piece| piece).map(|piece| piece.expect("no error")).collect::<Vec<_>>().await
        };
        assert!(sizes(0).await.is_empty());
        let pieces = sizes(PIECE + 1).await;
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE, 1]);
        assert_eq!(pieces.concat(), (0..=PIECE).collect::<Vec<_>>());
    }

    #[test]
    fn every_wanted_label_must_be_there() {
        let labels = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let given = labels(&[("a", "1"), ("b", "2")]);
        assert!(has_labels(&given, &labels(&[])) && has_labels(&given, &labels(&[("a", "1")])));
        assert!(!has_labels(&given, &labels(&[("a", "2")])) && !has_labels(&given, &labels(&[("c", "")])));
    }
}
