//! Answers: their bodies, and the words of the refusals that every kubelet gives.

use std::io;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// What is sent.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
/// A whole answer.
pub(super) type Answer = Response<Body>;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Words for people.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with(status, TEXT, text)
}

/// An object.
pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => with(StatusCode::OK, JSON, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// A body of that type.
pub(super) fn with(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// What comes piece by piece.
pub(super) fn stream<S>(pieces: S) -> Answer
where
    S: futures::Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    use futures::TryStreamExt;
    let body = http_body_util::StreamBody::new(pieces.map_ok(hyper::body::Frame::data)).boxed_unsync();
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, TEXT);
    answer
}

/// What the runtime refused. Upstream: k8s.io/kubelet/pkg/cri/streaming, WriteError.
pub(super) fn of_runtime(status: &tonic::Status) -> Answer {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(code, status.message().to_owned())
}
