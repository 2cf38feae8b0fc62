//! `/grpc`, which buildx builds by: every call is answered with why it is not. A refused upgrade would reach people as
//! a status without a word.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderValue, header};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioExecutor;

use super::session::switching;
use crate::error::ApiError;

/// `UNIMPLEMENTED`.
const STATUS: HeaderValue = HeaderValue::from_static("12");
const WHY: &str = "buildx's protocol is not spoken by insula in this version: build with DOCKER_BUILDKIT=0 docker \
                   build, or with insula build";

/// Takes the connection over and refuses what is asked on it.
pub(crate) fn refuse(mut request: Request) -> Result<Response, ApiError> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| ApiError::unsupported(WHY))?;
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => serve(stream).await,
            Err(error) => tracing::debug!(%error, "a connection of buildx was not taken over"),
        }
    });
    Ok(switching())
}

async fn serve<S>(stream: S)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(async |_| Ok::<_, Infallible>(answer()));
    if let Err(error) = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await {
        tracing::debug!(%error, "a connection of buildx ended");
    }
}

/// An answer without messages has its end in front.
fn answer() -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", STATUS);
    headers.insert("grpc-message", HeaderValue::from_static(WHY));
    response
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;

    use super::super::grpc::Channel;
    use super::super::messages::BytesMessage;
    use super::*;

    #[tokio::test]
    async fn every_call_is_told_why() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(serve(TokioIo::new(ours)));
        let channel = Channel::open(TokioIo::new(theirs), || {}).await.unwrap();
        for method in ["/moby.buildkit.v1.Control/ListWorkers", "/moby.buildkit.v1.Control/Solve"] {
            let answer = channel.ask::<BytesMessage>(method, &BytesMessage::default()).await;
            assert_eq!(answer.unwrap_err().to_string(), WHY);
        }
    }
}
