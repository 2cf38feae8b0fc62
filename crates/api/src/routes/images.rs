//! `/images`. Names hold slashes, so what follows them is taken from the end of the path.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use http::{HeaderMap, Method};
use insula_engine::images::{
    CommitRequest, Images, ImportRequest, IndexParts, ProgressSender, PullRequest, PushRequest, Shown,
};
use insula_models::{ApiVersion, ErrorDetail, IdResponse, ProgressMessage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::ApiError;
use crate::request::{MAX_JSON, Params, Path, read_bounded};
use crate::routes::archive::tar;
use crate::routes::registries::credentials;
use crate::routes::{Answer, Api, Version, json, json_with, shaped};
use crate::stream;
use crate::upload::Upload;

/// Lines of progress that wait for a slow client.
const BACKLOG: usize = 64;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/prune", post(prune))
        .route("/images/get", get(save))
        .route("/commit", post(commit))
        .route("/images/{*rest}", any(named))
}

async fn list(State(api): State<Api>, Version(version): Version, params: Params) -> Answer {
    let mut filters = params.filters()?;
    // The way before filters had it.
    if let Some(name) = params.text("filter").filter(|_| version < ApiVersion::v1(41)) {
        filters.entry("reference".to_owned()).or_default().push(name.to_owned());
    }
    let shown = if params.flag("all") { Shown::All } else { Shown::Images };
    let mut images = if params.flag("shared-size") {
        api.engine.images().list_shared(&filters, shown).await?
    } else {
        api.engine.images().list(&filters, shown)?
    };
    if version >= ApiVersion::v1(51) {
        api.engine.count_image_users(&mut images).await?;
    }
    shaped(version, &images)
}

async fn load(State(api): State<Api>, params: Params, body: Body) -> Answer {
    let quiet = params.flag("quiet");
    if params.text("platform").is_some() {
        return Err(ApiError::unsupported(
            "the platform of images that are loaded cannot be chosen: every image has one, and all are loaded",
        ));
    }
    let images = api.engine.images().clone();
    Ok(streamed(quiet, move |progress| async move { images.load(Upload::new(body), progress).await }))
}

/// `fromImage` pulls, `fromSrc` imports.
async fn create(State(api): State<Api>, headers: HeaderMap, params: Params, body: Body) -> Answer {
    if let Some(name) = params.text("fromImage") {
        return pull(&api, &headers, &params, name).await;
    }
    match params.text("fromSrc") {
        Some("-") => {}
        Some(url) => {
            return Err(ApiError::unsupported(format!(
                "importing from {url} is not available in this version: fetch it and import it from standard input"
            )));
        }
        None => return Err(ApiError::invalid("fromImage or fromSrc is expected")),
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
    Ok(streamed(
        false,
        move |progress| async move { images.import(Upload::new(body), request, progress).await },
    ))
}

async fn pull(api: &Api, headers: &HeaderMap, params: &Params, name: &str) -> Answer {
    let request = PullRequest {
        name: name.to_owned(),
        tag: params.text("tag").unwrap_or_default().to_owned(),
        platform: params.text("platform").unwrap_or_default().to_owned(),
        credentials: credentials(headers)?,
    };
    let images = api.engine.images().clone();
    transferred(move |progress| async move { images.pull(request, progress).await }).await
}

async fn push(api: &Api, headers: &HeaderMap, params: &Params, name: &str) -> Answer {
    let request = PushRequest {
        name: name.to_owned(),
        tag: params.text("tag").unwrap_or_default().to_owned(),
        credentials: credentials(headers)?,
    };
    let images = api.engine.images().clone();
    transferred(move |progress| async move { images.push(request, progress).await }).await
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    json(&api.engine.prune_images(params.filters()?).await?)
}

async fn save(State(api): State<Api>, params: Params) -> Answer {
    let names: Vec<String> =
        params.all("names").iter().flat_map(|names| names.split(',')).map(str::to_owned).collect();
    names.iter().try_for_each(|name| check_platform(api.engine.images(), &params, name))?;
    tar(api.engine.images().save(names, parts(&params))?).await
}

async fn commit(State(api): State<Api>, params: Params, body: axum::body::Body) -> Answer {
    let body = read_bounded(body, MAX_JSON).await?;
    let container = params.text("container").ok_or_else(|| ApiError::invalid("a container is needed"))?;
    let reference = params.text("repo").map(|repository| match params.text("tag") {
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    });
    let config = match body.trim_ascii() {
        b"" | b"null" => None,
        body => Some(
            insula_models::from_request(body)
                .map_err(|error| ApiError::invalid(format!("the body: {error}")))?,
        ),
    };
    let request = CommitRequest {
        reference,
        author: params.text("author").unwrap_or_default().to_owned(),
        message: params.text("comment").unwrap_or_default().to_owned(),
        changes: params.all("changes").iter().flat_map(|text| text.lines()).map(str::to_owned).collect(),
        pause: params.flag_or("pause", true),
        config,
    };
    let id = api.engine.commit_container(container, request).await?;
    json_with(http::StatusCode::CREATED, &IdResponse { id })
}

/// `/images/NAME`, `/images/NAME/json` and so on.
async fn named(
    State(api): State<Api>,
    method: Method,
    headers: HeaderMap,
    Path(rest): Path<String>,
    Version(version): Version,
    params: Params,
) -> Answer {
    let images = api.engine.images();
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    match method {
        Method::DELETE => check_platform(images, &params, &rest)?,
        _ if matches!(verb, "json" | "history" | "get" | "push") => check_platform(images, &params, name)?,
        _ => {}
    }
    match (&method, verb) {
        (&Method::GET | &Method::HEAD, "json") => shaped(version, &images.inspect(name)?),
        (&Method::GET | &Method::HEAD, "history") => json(&images.history(name)?),
        (&Method::GET, "get") => tar(images.save(vec![name.to_owned()], parts(&params))?).await,
        (&Method::POST, "push") => push(&api, &headers, &params, name).await,
        (&Method::POST, "tag") => {
            let repository = params.get("repo").unwrap_or_default();
            images.tag(name, repository, params.get("tag").unwrap_or_default())?;
            Ok(http::StatusCode::CREATED.into_response())
        }
        (&Method::DELETE, _) => remove(&api, &rest, &params).await,
        _ => Err(ApiError::no_page()),
    }
}

/// Newer clients may say which of an image's platforms they mean. An image here has one: a name that is given with
/// another platform is not there.
/// Who names a platform wants the image that is for it, and not all of an index.
fn parts(params: &Params) -> IndexParts {
    let named = |field: &&str| params.all(field).iter().any(|text| !text.is_empty());
    if ["platform", "platforms"].iter().any(named) { IndexParts::Meant } else { IndexParts::All }
}

fn check_platform(images: &Images, params: &Params, name: &str) -> Result<(), ApiError> {
    #[derive(serde::Deserialize)]
    struct Wanted {
        os: String,
        architecture: String,
        #[serde(default)]
        variant: String,
    }
    for text in ["platform", "platforms"].into_iter().flat_map(|field| params.all(field)) {
        if text.is_empty() {
            continue;
        }
        let wanted: Wanted = serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(format!("failed to parse platform {text:?}: {error}")))?;
        let image = images.inspect(name)?;
        let shown = |parts: [&str; 3]| {
            parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("/")
        };
        let same = wanted.os == image.os
            && wanted.architecture == image.architecture
            && (wanted.variant.is_empty() || wanted.variant == image.variant);
        if !same {
            return Err(ApiError::new(
                http::StatusCode::NOT_FOUND,
                format!(
                    "image with reference {name} was found but its platform ({}) does not match the specified \
                     platform ({})",
                    shown([&image.os, &image.architecture, &image.variant]),
                    shown([&wanted.os, &wanted.architecture, &wanted.variant])
                ),
            ));
        }
    }
    Ok(())
}

async fn remove(api: &Api, name: &str, params: &Params) -> Answer {
    json(&api.engine.remove_image(name, params.flag("force")).await?)
}

/// Answers with the progress of `work`, errors included: the status is sent before the work is done.
fn streamed<F>(quiet: bool, work: impl FnOnce(ProgressSender) -> F) -> Response
where
    F: Future<Output = Result<(), insula_engine::Error>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let work = tokio::spawn(work(sender));
    progress(quiet, None, receiver, work)
}

/// As [`streamed`], for work with a registry: what fails before the first line has a status of its own,
/// and the work ends when the client goes away.
pub(super) async fn transferred<F>(work: impl FnOnce(ProgressSender) -> F) -> Answer
where
    F: Future<Output = Result<(), insula_engine::Error>> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(BACKLOG);
    let work = work(sender.clone());
    let work = tokio::spawn(async move {
        tokio::select! {
            done = work => done,
            // Nobody is there to be told.
            () = sender.closed() => Ok(()),
        }
    });
    match receiver.recv().await {
        Some(first) => Ok(progress(false, Some(first), receiver, work)),
        None => ended(work).await.map(|()| progress(false, None, receiver, tokio::spawn(async { Ok(()) }))),
    }
}

type Work = JoinHandle<Result<(), insula_engine::Error>>;

async fn ended(work: Work) -> Result<(), ApiError> {
    match work.await {
        Ok(done) => Ok(done?),
        Err(error) => Err(ApiError::internal(format!("the work was not done: {error}"))),
    }
}

/// The lines, and at last what the work failed with.
fn progress(
    quiet: bool,
    first: Option<ProgressMessage>,
    receiver: mpsc::Receiver<ProgressMessage>,
    work: Work,
) -> Response {
    let body = stream::chunks(
        (first, receiver, Some(work)),
        move |(mut first, mut receiver, mut work)| async move {
            loop {
                let line = match first.take() {
                    Some(first) => Some(first),
                    None => receiver.recv().await,
                };
                match line {
                    Some(line) if quiet && line.progress_detail.is_some() => {}
                    Some(line) => return Some((stream::line(&line), (first, receiver, work))),
                    None => {
                        let error = ended(work.take()?).await.err()?;
                        return Some((stream::line(&failure(&error.to_string())), (None, receiver, None)));
                    }
                }
            }
        },
    );
    stream::json(body)
}

fn failure(message: &str) -> ProgressMessage {
    ProgressMessage {
        error_detail: Some(ErrorDetail { message: message.to_owned(), code: 0 }),
        error: message.to_owned(),
        ..ProgressMessage::default()
    }
}
