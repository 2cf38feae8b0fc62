//! `/insula/registry`: the images of this engine in the protocol of registries (OCI distribution specification),
//! as `/v2` is elsewhere. `insula serve-images` is what serves it to others: who may ask is its business.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use insula_base::{Digest, Kind, Kinded, chain};
use insula_engine::images::Images;
use serde_json::json;

use crate::registry_names::{Range, Target, range, starts_at};
use crate::request::{Params, Path, read_bounded};
use crate::routes::Api;

/// A manifest that is pushed.
const MANIFEST_MAX: usize = 4 << 20;
/// Names in one answer.
const PAGE: usize = 1000;
/// Who sends nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that are written at a time: what comes from the network comes in crumbs.
const PIECE: usize = 1 << 20;

const DIGEST: &str = "docker-content-digest";
const UPLOAD: &str = "docker-upload-uuid";
/// Of the distribution specification 1.1.
const SUBJECT: &str = "oci-subject";
const FILTERED: &str = "oci-filters-applied";

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/insula/registry/", any(base)).route("/insula/registry/{*rest}", any(below))
}

/// What is wrong, as registries say it.
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

type Answer = Result<Response, Failure>;

impl Failure {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn unsupported(message: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// An error of the engine, where `code` is what could not be found or is invalid.
    fn of(missing: &'static str, invalid: &'static str) -> impl Fn(insula_engine::Error) -> Self {
        move |error| {
            let status = StatusCode::from_u16(error.kind().http_status());
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let code = match error.kind() {
                Kind::NotFound => missing,
                Kind::InvalidArgument => invalid,
                Kind::Denied => "DENIED",
                Kind::Unavailable => "TOOMANYREQUESTS",
                _ => "UNKNOWN",
            };
            Self::new(status, code, chain(&error))
        }
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        let document =
            json!({"errors": [{"code": failure.code, "message": failure.message, "detail": null}]});
        answer(failure.status, "application/json", document.to_string())
    }
}

fn answer(status: StatusCode, media_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE.as_str(), media_type);
    response
}

fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

async fn base() -> Response {
    answer(StatusCode::OK, "application/json", "{}")
}

async fn below(
    State(api): State<Api>,
    method: Method,
    headers: HeaderMap,
    Path(rest): Path<String>,
    params: Params,
    body: Body,
) -> Response {
    let Some(target) = Target::of(&rest) else {
        return Failure::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "a registry has no such path").into();
    };
    let images = api.engine.images();
    let reads = matches!(method, Method::GET | Method::HEAD);
    let answered = match target {
        Target::Catalog if reads => catalog(images, &params).await,
        Target::Tags { name } if reads => tags(images, name, &params).await,
        Target::Manifest { name, reference } if reads => manifest(images, name, reference, &method).await,
        Target::Manifest { name, reference } if method == Method::PUT => {
            put_manifest(images, name, reference, &headers, body).await
        }
        Target::Referrers { name, digest } if reads => referrers(images, name, digest, &params).await,
        Target::Blob { digest, .. } if reads => blob(images, digest, &method, &headers).await,
        Target::Uploads { name } if method == Method::POST => begin(images, name, &params, body).await,
        Target::Upload { name, id } => upload(images, name, id, &method, &headers, &params, body).await,
        _ => Err(Failure::unsupported("this registry does not do that: images are removed by insula rmi")),
    };
    answered.unwrap_or_else(Response::from)
}

async fn catalog(images: &Images, params: &Params) -> Answer {
    let all = images.repositories().await.map_err(Failure::of("NAME_UNKNOWN", "NAME_INVALID"))?;
    let (page, next) = page(all, params)?;
    linked(&json!({"repositories": page}), "_catalog", next)
}

async fn tags(images: &Images, name: &str, params: &Params) -> Answer {
    let all = images.repository_tags(name).await.map_err(Failure::of("NAME_UNKNOWN", "NAME_INVALID"))?;
    let (page, next) = page(all, params)?;
    linked(&json!({"name": name, "tags": page}), &format!("{name}/tags/list"), next)
}

/// Those after `last`, at most `n`; and what the next page is asked for with, if there is one.
fn page(all: Vec<String>, params: &Params) -> Result<(Vec<String>, Option<String>), Failure> {
    let number = params.number::<usize>("n");
    let number = number.map_err(|error| {
        Failure::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", error.to_string())
    })?;
    let count = number.unwrap_or(PAGE).min(PAGE);
    let after = params.text("last").unwrap_or_default().to_owned();
    let mut rest = all.into_iter().filter(|name| after.is_empty() || *name > after);
    let page: Vec<String> = rest.by_ref().take(count).collect();
    let more = rest.next().is_some();
    let next = page.last().filter(|_| more).map(|last| format!("last={last}&n={count}"));
    Ok((page, next))
}

fn linked(document: &serde_json::Value, path: &str, next: Option<String>) -> Answer {
    let mut response = answer(StatusCode::OK, "application/json", document.to_string());
    if let Some(next) = next {
        set(&mut response, "link", &format!("</v2/{path}?{next}>; rel=\"next\""));
    }
    Ok(response)
}

async fn manifest(images: &Images, name: &str, reference: &str, method: &Method) -> Answer {
    let found = images.shared_manifest(name, reference).await;
    let found = found.map_err(Failure::of("MANIFEST_UNKNOWN", "MANIFEST_INVALID"))?;
    let length = found.bytes.len().to_string();
    let body = if *method == Method::HEAD { Body::empty() } else { Body::from(found.bytes) };
    let mut response = answer(StatusCode::OK, &found.media_type, body);
    set(&mut response, header::CONTENT_LENGTH.as_str(), &length);
    set(&mut response, DIGEST, found.digest.as_str());
    Ok(response)
}

async fn put_manifest(
    images: &Images,
    name: &str,
    reference: &str,
    headers: &HeaderMap,
    body: Body,
) -> Answer {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.unwrap_or_default();
    let bytes = read_bounded(body, MANIFEST_MAX).await.map_err(|error| {
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", error.to_string())
    })?;
    let put = images.put_manifest(name, reference, media_type, bytes.to_vec()).await;
    let put = put.map_err(Failure::of("MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID"))?;
    let mut response = answer(StatusCode::CREATED, "application/json", Body::empty());
    set(&mut response, header::LOCATION.as_str(), &format!("/v2/{name}/manifests/{}", put.digest));
    set(&mut response, DIGEST, put.digest.as_str());
    if let Some(subject) = &put.subject {
        set(&mut response, SUBJECT, subject.as_str());
    }
    Ok(response)
}

/// What says something about a manifest, which need not be here itself.
async fn referrers(images: &Images, name: &str, subject: &str, params: &Params) -> Answer {
    let (subject, kind) = (digest(subject)?, params.text("artifactType"));
    let found = images.referrers(name, &subject, kind).await;
    let found = found.map_err(Failure::of("NAME_UNKNOWN", "NAME_INVALID"))?;
    let mut response =
        answer(StatusCode::OK, "application/vnd.oci.image.index.v1+json", found.document.to_string());
    if kind.is_some() {
        set(&mut response, FILTERED, "artifactType");
    }
    Ok(response)
}

fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|error: insula_base::DigestError| {
        Failure::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    })
}

async fn blob(images: &Images, digest_text: &str, method: &Method, headers: &HeaderMap) -> Answer {
    let digest = digest(digest_text)?;
    let failed = Failure::of("BLOB_UNKNOWN", "BLOB_INVALID");
    let unknown =
        || Failure::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not known"));
    if *method == Method::HEAD {
        // What was pushed and waits for its manifest need not be pushed again.
        let size = images.blob_size(&digest).await.map_err(failed)?.ok_or_else(unknown)?;
        return Ok(blob_head(StatusCode::OK, &digest, size, Body::empty()));
    }
    let blob = images.shared_blob(&digest).await.map_err(&failed)?;
    let size = blob.size();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (first, length, status) = match asked.map(|asked| range(asked, size)) {
        None | Some(Range::Whole) => (0, size, StatusCode::OK),
        Some(Range::Part { first, last }) => (first, last - first + 1, StatusCode::PARTIAL_CONTENT),
        Some(Range::Outside) => {
            let message = format!("blob {digest} has {size} bytes");
            let mut response: Response =
                Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message).into();
            set(&mut response, "content-range", &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let mut chunks = blob.read(first, length).await.map_err(&failed)?;
    // What goes wrong before the first byte is said, and not shown by a connection that is cut.
    let begun = match chunks.recv().await {
        Some(Err(error)) => {
            return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string()));
        }
        begun => begun,
    };
    let chunks = futures_util::stream::unfold((begun, chunks), |(begun, mut chunks)| async move {
        let chunk = match begun {
            Some(chunk) => chunk,
            None => chunks.recv().await?,
        };
        Some((chunk, (None, chunks)))
    });
    let mut response = blob_head(status, &digest, length, Body::from_stream(chunks));
    if status == StatusCode::PARTIAL_CONTENT {
        set(&mut response, "content-range", &format!("bytes {first}-{}/{size}", first + length - 1));
    }
    Ok(response)
}

fn blob_head(status: StatusCode, digest: &Digest, length: u64, body: Body) -> Response {
    let mut response = answer(status, "application/octet-stream", body);
    set(&mut response, header::CONTENT_LENGTH.as_str(), &length.to_string());
    set(&mut response, header::ACCEPT_RANGES.as_str(), "bytes");
    set(&mut response, header::CACHE_CONTROL.as_str(), "max-age=31536000");
    set(&mut response, DIGEST, digest.as_str());
    response
}

fn upload_failed(error: insula_engine::Error) -> Failure {
    Failure::of("BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID")(error)
}

async fn begin(images: &Images, name: &str, params: &Params, body: Body) -> Answer {
    if let Some(wanted) = params.text("mount") {
        let wanted = digest(wanted)?;
        if images.blob_size(&wanted).await.map_err(upload_failed)?.is_some() {
            return Ok(created(name, &wanted));
        }
    }
    let id = images.begin_upload().await.map_err(upload_failed)?;
    match params.text("digest") {
        Some(text) => finish(images, name, &id, text, body).await,
        None => Ok(accepted(StatusCode::ACCEPTED, name, &id, 0)),
    }
}

async fn upload(
    images: &Images,
    name: &str,
    id: &str,
    method: &Method,
    headers: &HeaderMap,
    params: &Params,
    body: Body,
) -> Answer {
    let here = images.uploaded(id).await.map_err(upload_failed)?;
    match *method {
        Method::GET | Method::HEAD => Ok(accepted(StatusCode::NO_CONTENT, name, id, here)),
        Method::DELETE => {
            images.cancel_upload(id).map_err(upload_failed)?;
            Ok(answer(StatusCode::NO_CONTENT, "application/json", Body::empty()))
        }
        Method::PATCH | Method::PUT => {
            let from = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            if from.is_some_and(|from| starts_at(from) != Some(here)) {
                return Ok(accepted(StatusCode::RANGE_NOT_SATISFIABLE, name, id, here));
            }
            if *method == Method::PUT {
                let missing = || Failure::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "digest is missing");
                return finish(images, name, id, params.text("digest").ok_or_else(missing)?, body).await;
            }
            let here = append(images, id, body, here).await?;
            Ok(accepted(StatusCode::ACCEPTED, name, id, here))
        }
        _ => Err(Failure::unsupported("uploads know GET, PATCH, PUT and DELETE")),
    }
}

async fn append(images: &Images, id: &str, body: Body, mut here: u64) -> Result<u64, Failure> {
    let mut stream = body.into_data_stream();
    let mut piece = bytes::BytesMut::with_capacity(PIECE);
    loop {
        let broken = |why: &str| Failure::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why);
        let next = tokio::time::timeout(PATIENCE, stream.next()).await;
        match next.map_err(|_| broken("the upload has stopped"))? {
            Some(Ok(chunk)) => piece.extend_from_slice(&chunk),
            Some(Err(error)) => return Err(broken(&error.to_string())),
            None => break,
        }
        if piece.len() >= PIECE {
            let full = std::mem::replace(&mut piece, bytes::BytesMut::with_capacity(PIECE));
            here = images.append_upload(id, full.freeze()).await.map_err(upload_failed)?;
        }
    }
    if !piece.is_empty() {
        here = images.append_upload(id, piece.freeze()).await.map_err(upload_failed)?;
    }
    Ok(here)
}

async fn finish(images: &Images, name: &str, id: &str, text: &str, body: Body) -> Answer {
    let wanted = digest(text)?;
    append(images, id, body, 0).await?;
    images.finish_upload(id, &wanted).await.map_err(upload_failed)?;
    Ok(created(name, &wanted))
}

fn created(name: &str, digest: &Digest) -> Response {
    let mut response = answer(StatusCode::CREATED, "application/json", Body::empty());
    set(&mut response, header::LOCATION.as_str(), &format!("/v2/{name}/blobs/{digest}"));
    set(&mut response, DIGEST, digest.as_str());
    response
}

fn accepted(status: StatusCode, name: &str, id: &str, here: u64) -> Response {
    let mut response = answer(status, "application/json", Body::empty());
    set(&mut response, header::LOCATION.as_str(), &format!("/v2/{name}/blobs/uploads/{id}"));
    set(&mut response, header::RANGE.as_str(), &format!("0-{}", here.saturating_sub(1)));
    set(&mut response, UPLOAD, id);
    response
}
