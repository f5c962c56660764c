//! The node's own logins at registries, shown after those of the pod's Secrets. Where they lie is for the caller to know.

use std::fmt;
use std::sync::Arc;

use cri::v1::AuthConfig;

type Find = dyn Fn(&str) -> Vec<AuthConfig> + Send + Sync;

/// Finds the node's logins for an image, in the order in which they are tried; none by default.
#[derive(Clone)]
pub struct NodeLogins(Arc<Find>);

impl NodeLogins {
    /// Asks `find` anew for each pull.
    pub fn new(find: impl Fn(&str) -> Vec<AuthConfig> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }

    /// What a pull is tried with, in turn: the pod's own logins, then the node's; nothing at all only where there are none.
    pub(crate) fn tries(&self, of_pod: Vec<AuthConfig>, image: &str) -> Vec<Option<AuthConfig>> {
        let all: Vec<_> = of_pod.into_iter().chain((self.0)(image)).map(Some).collect();
        if all.is_empty() { vec![None] } else { all }
    }
}

impl Default for NodeLogins {
    fn default() -> Self {
        Self::new(|_| Vec::new())
    }
}

impl fmt::Debug for NodeLogins {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NodeLogins")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_of_the_pod_are_tried_before_those_of_the_node() {
        let user = |name: &str| AuthConfig { username: name.to_owned(), ..AuthConfig::default() };
        let node = NodeLogins::new(move |image| match image {
            "known" => vec![user("first"), user("second")],
            _ => Vec::new(),
        });
        let check = |logins: &NodeLogins, of_pod: &[&str], image: &str, expect: &[Option<&str>]| {
            let tries = logins.tries(of_pod.iter().map(|name| user(name)).collect(), image);
            let tries: Vec<Option<&str>> =
                tries.iter().map(|auth| auth.as_ref().map(|auth| auth.username.as_str())).collect();
            assert_eq!(tries, expect, "{image}");
        };
        check(&node, &["pod"], "known", &[Some("pod"), Some("first"), Some("second")]);
        check(&node, &["pod"], "other", &[Some("pod")]);
        check(&node, &[], "known", &[Some("first"), Some("second")]);
        check(&node, &[], "other", &[None]);
        check(&NodeLogins::default(), &[], "known", &[None]);
    }
}
