//! Events as upstream words them: the last 1000, newest last.

use std::collections::VecDeque;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{self, Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::pod::model::Pod;
use crate::time::{api_time, wall_ns};

const KEPT: usize = 1000;

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// The events of this node.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    events: VecDeque<Arc<Event>>,
    /// Nanoseconds since 1970 in the name of the newest.
    last_name: i64,
}

impl Recorder {
    /// Notes an event of a pod, and gives it back as it stands now.
    pub(crate) fn note(
        &mut self,
        node: &str,
        pod: &Pod,
        kind: Kind,
        reason: &str,
        message: &str,
    ) -> Arc<Event> {
        self.note_object(node, &pod.source, kind, reason, message)
    }

    /// The same for a pod that is not understood.
    pub(crate) fn note_object(
        &mut self,
        node: &str,
        pod: &v1::Pod,
        kind: Kind,
        reason: &str,
        message: &str,
    ) -> Arc<Event> {
        let about = ObjectReference {
            kind: Some("Pod".into()),
            api_version: Some("v1".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        self.note_about(node, about, kind, reason, message)
    }

    /// Notes an event of the node itself, which has its name for a uid, as upstream.
    pub(crate) fn note_node(&mut self, node: &str, kind: Kind, reason: &str, message: &str) -> Arc<Event> {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        self.note_about(node, about, kind, reason, message)
    }

    /// The same event again only counts up.
    fn note_about(
        &mut self,
        node: &str,
        about: ObjectReference,
        kind: Kind,
        reason: &str,
        message: &str,
    ) -> Arc<Event> {
        let ns = wall_ns();
        let now = api_time(ns);
        let same = |event: &&mut Arc<Event>| {
            event.involved_object.uid == about.uid
                && event.reason.as_deref() == Some(reason)
                && event.message.as_deref() == Some(message)
        };
        if let Some(known) = self.events.iter_mut().rev().take(50).find(same) {
            let event = Arc::make_mut(known);
            event.count = event.count.map(|count| count + 1);
            event.last_timestamp = now;
            return Arc::clone(known);
        }
        // Upstream's form of a name: unique among all events of the object.
        self.last_name = ns.max(self.last_name + 1);
        let event = Arc::new(Event {
            metadata: ObjectMeta {
                name: about.name.as_ref().map(|name| format!("{name}.{:x}", self.last_name)),
                namespace: about.namespace.clone().or_else(|| Some("default".to_owned())),
                ..ObjectMeta::default()
            },
            involved_object: about,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            type_: Some(if kind == Kind::Normal { "Normal" } else { "Warning" }.to_owned()),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.to_owned()) }),
            count: Some(1),
            first_timestamp: now.clone(),
            last_timestamp: now,
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(node.to_owned()),
            ..Event::default()
        });
        self.events.push_back(Arc::clone(&event));
        while self.events.len() > KEPT {
            self.events.pop_front();
        }
        event
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<Arc<Event>> {
        self.events.iter().cloned().collect()
    }
}
