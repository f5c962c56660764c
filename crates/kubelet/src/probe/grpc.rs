//! The standard health protocol, `grpc.health.v1.Health/Check`: two messages, written out. Upstream: pkg/probe/grpc.

use std::time::Duration;

use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::Answer;
use super::dial::Place;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks the server for the health of `service`; the empty name is the server itself.
pub(super) async fn ask(service: &str, place: &Place, timeout: Duration) -> Answer {
    let failed = |error: &dyn std::fmt::Display| {
        Answer::Failure(format!("error: failed to connect service at {:?}: {error}", place.to_string()))
    };
    let endpoint = match Endpoint::from_shared(format!("http://{place}")) {
        Err(error) => return Answer::Error(error.to_string()),
        Ok(endpoint) => endpoint,
    };
    let endpoint = match endpoint.user_agent(super::http::USER_AGENT) {
        Err(error) => return Answer::Error(error.to_string()),
        Ok(endpoint) => endpoint,
    };
    // tonic names no cause of a connection that cannot be made: this one tells it.
    let limit = tokio::time::Instant::now() + timeout;
    if let Err(error) = super::dial::dial(place, timeout).await {
        return failed(&error);
    }
    let channel = match tokio::time::timeout_at(limit, endpoint.connect()).await {
        Err(_) => {
            return Answer::Failure(format!(
                "timeout: failed to connect service {:?} within {timeout:?}: context deadline exceeded",
                place.to_string()
            ));
        }
        Ok(Err(error)) => return failed(&error),
        Ok(Ok(channel)) => channel,
    };
    let checked = tokio::time::timeout_at(limit, check(channel, service)).await;
    answer_of(checked.unwrap_or_else(|_| Err(Status::deadline_exceeded(""))), timeout)
}

async fn check(channel: Channel, service: &str) -> Result<i32, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    client.unary(request, path, codec).await.map(|response| response.into_inner().status)
}

/// What the answer means. Pure.
fn answer_of(checked: Result<i32, Status>, timeout: Duration) -> Answer {
    match checked.map(ServingStatus::try_from) {
        Ok(Ok(ServingStatus::Serving)) => Answer::Success,
        Ok(status) => {
            let name = match status {
                Ok(ServingStatus::NotServing) => "NOT_SERVING".to_owned(),
                Ok(ServingStatus::ServiceUnknown) => "SERVICE_UNKNOWN".to_owned(),
                Ok(ServingStatus::Unknown | ServingStatus::Serving) => "UNKNOWN".to_owned(),
                Err(number) => number.to_string(),
            };
            Answer::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Err(status) => Answer::Failure(match status.code() {
            Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {timeout:?}"),
            code => format!(
                "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
                status.message()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::{HeaderMap, Response};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;
    use crate::probe::dial::Host;

    const LIMIT: Duration = Duration::from_secs(5);

    fn place(address: SocketAddr) -> Place {
        Place { host: Host::Ip(address.ip()), port: address.port() }
    }

    /// A server for one connection that answers with this health, or with this code of an error.
    async fn server(health: Result<i32, i32>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(move |request| answer(request, health));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    async fn answer(
        request: hyper::Request<Incoming>,
        health: Result<i32, i32>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let body = request.into_body().collect().await.expect("a request").to_bytes();
        assert_eq!(HealthCheckRequest::decode(&body[5..]).expect("a message").service, "db");
        let message = HealthCheckResponse { status: health.unwrap_or(0) }.encode_to_vec();
        let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")];
        frame.extend(message);
        let mut trailers = HeaderMap::new();
        let code = health.err().unwrap_or(0);
        trailers.insert("grpc-status", code.into());
        let body = Full::new(if code == 0 { Bytes::from(frame) } else { Bytes::new() });
        let body = body.with_trailers(async move { Some(Ok(trailers)) });
        Ok(Response::builder().header("content-type", "application/grpc").body(body).expect("a response"))
    }

    #[tokio::test]
    async fn health_is_asked_by_the_standard_protocol() {
        for (health, expect) in [
            (Ok(1), None),
            (Ok(2), Some("service unhealthy (responded with \"NOT_SERVING\")")),
            (Ok(0), Some("service unhealthy (responded with \"UNKNOWN\")")),
            (
                Err(12),
                Some(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ",
                ),
            ),
            (Err(5), Some("error: health rpc probe failed: rpc error: code = NotFound desc = ")),
        ] {
            let answer = ask("db", &place(server(health).await), LIMIT).await;
            let expect = expect.map_or(Answer::Success, |text| Answer::Failure(text.into()));
            assert_eq!(answer, expect, "{health:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_or_silent_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let Answer::Failure(silent) = ask("", &place(address), Duration::from_millis(50)).await else {
            panic!("a success")
        };
        assert!(silent.starts_with("timeout: "), "{silent}");
        drop(listener);
        let text = format!(
            "error: failed to connect service at \"{address}\": dial tcp {address}: connect: connection refused"
        );
        assert_eq!(ask("", &place(address), LIMIT).await, Answer::Failure(text));
    }
}
