//! Pulling from registries: the distribution protocol over HTTP(S), read only.
//!
//! ```text
//! hosts.rs      certs.d/<registry>/hosts.toml → which hosts to ask, in order      auth.rs   challenges → authorization headers
//! transport.rs  TLS, names, redirects, time limits                                session.rs one pull's conversation with them
//! download.rs   a blob over as many connections as it takes
//! ```
//! Not here: pushing, HTTP proxies from the environment.

mod auth;
mod download;
mod hosts;
mod session;
mod transport;

use std::sync::Arc;

pub(super) use session::Session;

use super::acquire::{OnProgress, Source, Wanted, acquire};
use super::reference::{Reference, Target};
use super::store::Inner;
use super::{Auth, ImageError, ImageId};

/// Resolves a reference at its registry (or a mirror of it) and brings the image in.
pub(super) async fn pull(
    inner: &Arc<Inner>,
    reference: &str,
    auth: Option<Auth>,
    progress: OnProgress,
) -> Result<ImageId, ImageError> {
    let reference = Reference::parse(reference)?;
    let hosts = hosts::load(&inner.registry_config_dir, &reference.domain)?;
    let session = Arc::new(Session::new(reference.clone(), hosts, auth.unwrap_or_default(), &inner.limits)?);
    let (top, content) = session.manifest(reference.manifest_name()).await?;
    let by_digest = reference.with_digest(&top.digest).to_string();
    let names = match reference.target {
        Target::Tag(_) => vec![reference.to_string(), by_digest],
        Target::Digest(_) => vec![by_digest],
    };
    let wanted = Wanted { reference: reference.to_string(), top, content, names };
    acquire(inner, Source::Registry(session), wanted, progress).await
}

#[cfg(test)]
mod tests;
