//! `/containers/{id}/archive`: files out of and into a container.

use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue, StatusCode, header};
use insula_engine::archive::{ArchiveChunks, WriteOptions};
use insula_models::PathStat;

use crate::error::ApiError;
use crate::hijack::Takeover;
use crate::request::{Params, Path};
use crate::routes::{Answer, Api};
use crate::sent;
use crate::upload::Upload;

/// Of a file that is read and written at once: within the processor's caches.
const PIECE: usize = 512 << 10;
const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/containers/{id}/archive", get(read).head(stat).put(write))
        .route("/containers/{id}/export", get(export))
        .route("/insula/containers/{id}/file", post(write_file))
}

fn path(params: &Params) -> Result<&str, ApiError> {
    match params.text("path") {
        Some(path) if path.contains('\0') => {
            Err(ApiError::invalid(format!("bad parameter: no path has a NUL in it: {path:?}")))
        }
        Some(path) => Ok(path),
        None => Err(ApiError::invalid("bad parameter: 'path' cannot be empty")),
    }
}

async fn stat(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let stat = api.engine.stat_path(&id, path(&params)?).await?;
    with_stat(&stat, StatusCode::OK.into_response())
}

async fn read(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Answer {
    let (stat, archive) = api.engine.read_archive(&id, path(&params)?).await?;
    with_stat(&stat, tar(archive).await?)
}

async fn export(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    tar(api.engine.export_container(&id).await?).await
}

/// An error before there is anything is the answer; one in the middle cuts the connection, so that nobody takes a part
/// for the whole.
pub(super) async fn tar(mut archive: ArchiveChunks) -> Answer {
    let first = archive.recv().await.transpose().map_err(|error| {
        let message = insula_base::chain(&error);
        tracing::warn!(error = message, "make an archive");
        ApiError::internal(message)
    })?;
    let rest = futures_util::stream::unfold(archive, |mut archive| async move {
        let chunk = archive.recv().await?;
        if let Err(error) = &chunk {
            tracing::warn!(error = insula_base::chain(error), "an archive is cut off");
        }
        Some((chunk, archive))
    });
    let chunks = futures_util::stream::iter(first.map(Ok)).chain(rest);
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

async fn write(State(api): State<Api>, Path(id): Path<String>, params: Params, body: Body) -> Answer {
    let options = WriteOptions { keep_kinds: params.flag("noOverwriteDirNonDir") };
    api.engine.write_archive(&id, path(&params)?, Upload::new(body), options).await?;
    Ok(StatusCode::OK.into_response())
}

/// insula's own: one large file of a client on this host.
async fn write_file(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> Answer {
    let path = path(&params)?.to_owned();
    let options = WriteOptions { keep_kinds: params.flag("noOverwriteDirNonDir") };
    Takeover::of(request).upgraded(move |taken| async move {
        let stream = match sent::patient(taken.descriptor) {
            Ok(stream) => Arc::new(stream),
            Err(error) => return tracing::warn!(%error, "a client's socket"),
        };
        let outcome = write_sent(&api, &id, &path, options, stream.clone()).await;
        let told = tokio::task::spawn_blocking(move || sent::tell(&stream, outcome)).await;
        if let Err(error) = told {
            tracing::error!(%error, "a thread ended");
        }
    })
}

async fn write_sent(
    api: &Api,
    id: &str,
    path: &str,
    options: WriteOptions,
    stream: Arc<UnixStream>,
) -> Result<(), ApiError> {
    let received = tokio::task::spawn_blocking(move || sent::receive(&stream)).await;
    let sent = received.map_err(|error| ApiError::internal(format!("a thread ended: {error}")))??;
    let archive = BufReader::with_capacity(PIECE, sent);
    Ok(api.engine.write_archive(id, path, archive, options).await?)
}

fn with_stat(stat: &PathStat, mut response: Response) -> Answer {
    let document = serde_json::to_vec(stat).unwrap_or_default();
    let value = HeaderValue::try_from(STANDARD.encode(document))
        .map_err(|error| ApiError::internal(format!("describe the path: {error}")))?;
    response.headers_mut().insert(PATH_STAT, value);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::io;

    use http_body_util::BodyExt;
    use insula_engine::archive::archive_channel;

    use super::*;

    #[tokio::test]
    async fn what_fails_before_there_is_anything_is_told() {
        let (sender, archive) = archive_channel();
        sender.send(Err(io::Error::other("the disk is gone"))).await.unwrap();
        let answer = tar(archive).await.unwrap_err().into_response();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.windows(16).any(|part| part == b"the disk is gone"), "{body:?}");
        // Later nobody takes a part for the whole.
        let (sender, archive) = archive_channel();
        sender.send(Ok(b"part".to_vec())).await.unwrap();
        sender.send(Err(io::Error::other("the disk is gone"))).await.unwrap();
        let answer = tar(archive).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.into_body().collect().await.is_err());
    }
}
