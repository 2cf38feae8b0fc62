//! `/images`. Names hold slashes, so what follows them is taken from the end of the path.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::TryStreamExt;
use http::Method;
use insula_base::chain;
use insula_engine::images::{ImportRequest, ProgressSender};
use insula_models::{ApiVersion, ErrorDetail, ProgressMessage};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::error::ApiError;
use crate::request::Params;
use crate::routes::{Answer, Api, Version, json, shaped};
use crate::stream;

/// Lines of progress that wait for a slow client.
const BACKLOG: usize = 64;
const NO_REGISTRY: &str =
    "registries are not available in this version: load an archive, or import a root file system";
const NO_SAVE: &str = "saving images is not available in this version";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/prune", post(prune))
        .route("/images/search", get(async || ApiError::unsupported(NO_REGISTRY)))
        .route("/images/get", get(async || ApiError::unsupported(NO_SAVE)))
        .route("/images/{*rest}", any(named))
}

async fn list(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    let mut filters = params.filters()?;
    // The way before filters had it.
    if let Some(name) = params.text("filter").filter(|_| version < ApiVersion::v1(41)) {
        filters.entry("reference".to_owned()).or_default().push(name.to_owned());
    }
    let mut images = api.engine.images().list(&filters)?;
    if params.flag("shared-size") {
        for image in &mut images {
            image.shared_size = 0;
        }
    }
    if version >= ApiVersion::v1(51) {
        api.engine.count_image_users(&mut images).await?;
    }
    shaped(version, &images)
}

async fn load(State(api): State<Api>, params: Params, body: Body) -> Answer {
    let quiet = params.flag("quiet");
    let images = api.engine.images().clone();
    Ok(streamed(quiet, move |progress| async move { images.load(reader(body), progress).await }))
}

async fn create(State(api): State<Api>, params: Params, body: Body) -> Answer {
    match params.text("fromSrc") {
        Some("-") => {}
        Some(url) => {
            return Err(ApiError::unsupported(format!(
                "importing from {url} is not available in this version: fetch it and import it from standard input"
            )));
        }
        None => return Err(ApiError::unsupported(NO_REGISTRY)),
    }
    let reference = params.text("repo").map(|repository| match params.text("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    });
    let request = ImportRequest {
        reference,
        message: params.text("message").unwrap_or_default().to_owned(),
        changes: params.all("changes"),
        platform: params.text("platform").unwrap_or_default().to_owned(),
    };
    let images = api.engine.images().clone();
    Ok(streamed(false, move |progress| async move { images.import(reader(body), request, progress).await }))
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.images().prune(params.filters()?).await?)
}

/// `/images/NAME`, `/images/NAME/json` and so on.
async fn named(
    State(api): State<Api>,
    method: Method,
    Path(rest): Path<String>,
    Version(version): Version,
    params: Params,
) -> Answer {
    let images = api.engine.images();
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    match (&method, verb) {
        (&Method::GET | &Method::HEAD, "json") => shaped(version, &images.inspect(name)?),
        (&Method::GET | &Method::HEAD, "history") => json(&images.history(name)?),
        (&Method::GET | &Method::HEAD, "get") => Err(ApiError::unsupported(NO_SAVE)),
        (&Method::POST, "push") => Err(ApiError::unsupported(NO_REGISTRY)),
        (&Method::POST, "tag") => {
            let repository = params.get("repo").unwrap_or_default();
            images.tag(name, repository, params.get("tag").unwrap_or_default())?;
            Ok(http::StatusCode::CREATED.into_response())
        }
        (&Method::DELETE, _) => remove(&api, &rest, &params).await,
        _ => Err(ApiError::no_page()),
    }
}

async fn remove(api: &Api, name: &str, params: &Params) -> Answer {
    json(&api.engine.remove_image(name, params.flag("force")).await?)
}

/// The request's body for a thread that may block.
pub(super) fn reader(body: Body) -> impl std::io::Read + Send + 'static {
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    SyncIoBridge::new(StreamReader::new(Box::pin(stream)))
}

/// Answers with the progress of `work`, errors included: the status is sent before the work is done.
fn streamed<F>(quiet: bool, work: impl FnOnce(ProgressSender) -> F) -> Response
where
    F: Future<Output = Result<(), insula_engine::Error>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let work = work(sender.clone());
    tokio::spawn(async move {
        if let Err(error) = work.await {
            let message = chain(&error);
            let line = ProgressMessage {
                error_detail: Some(ErrorDetail { message: message.clone(), code: 0 }),
                error: message,
                ..ProgressMessage::default()
            };
            // The client may have gone.
            let _ = sender.send(line).await;
        }
    });
    let body = stream::chunks(receiver, move |mut receiver| async move {
        loop {
            let line: ProgressMessage = receiver.recv().await?;
            if !quiet || line.progress_detail.is_none() {
                return Some((stream::line(&line), receiver));
            }
        }
    });
    stream::json(body)
}
