//! `/build`: the legacy builder's requests. The context comes first and whole; what is told after that are its
//! lines.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::ready, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use insula_build::attest::Detail;
use insula_engine::AttachedStream;
use insula_engine::archive::{ArchiveChunks, ArchiveSender, archive_channel};
use insula_engine::build::{
    AgentsGiven, Attestations, BuildRequest, CacheScope, CacheSource, CacheTarget, KeptContext, NamedContext,
    Output, PruneRequest, Secret,
};
use insula_engine::images::Credentials;
use insula_models::{BuildAttestations, BuildContext, BuildExtras, BuildPruneResponse, HostConfig, Labels};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::buildkit::{self, Asked};
use crate::error::ApiError;
use crate::hijack::{Framing, Taken, Takeover};
use crate::request::Params;
use crate::routes::images::transferred;
use crate::routes::{Answer, Api, Version, json};
use crate::upload::Upload;

/// Bytes of one secret, as in BuildKit, and of everything in front of a context.
const SECRET_MAX: usize = 500 << 10;
const EXTRAS_MAX: usize = 4 << 20;
/// Caches that one build reads, or writes.
const CACHES_MAX: usize = 64;
/// Names a build: a query would be in logs.
const TOKEN_HEADER: &str = "x-insula-build";
const CONFIG_HEADER: &str = "x-registry-config";

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/build", post(build))
        .route("/insula/build", post(build_with))
        .route("/insula/build/agent", post(agent))
        .route("/insula/build/context", get(context_index))
        .route("/build/prune", post(prune))
        .route("/build/cancel", post(cancel))
        .route("/session", post(session))
        .route("/grpc", post(async |request: Request| buildkit::refuse(request)))
}

async fn build(State(api): State<Api>, headers: HeaderMap, params: Params, body: Body) -> Answer {
    if params.text("version") == Some("2") {
        let request = request_of(&headers, &params)?;
        return match Box::pin(buildkit::prepare(&api.buildkit, request, &params, body)).await? {
            Asked::Build(work) => {
                transferred(move |progress| Box::pin(work.run(api.engine.clone(), progress))).await
            }
            Asked::Answered(answer) => Ok(answer),
        };
    }
    let request = request(&headers, &params)?;
    let engine = api.engine.clone();
    transferred(move |progress| async move { engine.build(Upload::new(body), request, progress).await }).await
}

/// The connection becomes one on which the client answers while it builds.
async fn session(State(api): State<Api>, request: Request) -> Answer {
    buildkit::open(&api.buildkit, request)
}

async fn cancel(State(api): State<Api>, params: Params) -> Answer {
    Ok(buildkit::cancel(&api.buildkit, params.text("id").unwrap_or_default()))
}

/// insula's own: a document with its length, four bytes of it, is in front of the context.
async fn build_with(State(api): State<Api>, headers: HeaderMap, params: Params, body: Body) -> Answer {
    let mut request = request(&headers, &params)?;
    let stream = body.into_data_stream().map_err(std::io::Error::other);
    let mut stream = StreamReader::new(Box::pin(stream));
    let cut = |error| ApiError::invalid(format!("the document in front of the context: {error}"));
    let length = stream.read_u32().await.map_err(cut)? as usize;
    if length > EXTRAS_MAX {
        return Err(ApiError::invalid(format!(
            "the document in front of the context has {length} bytes, more than {EXTRAS_MAX}"
        )));
    }
    let mut document = vec![0; length];
    stream.read_exact(&mut document).await.map_err(cut)?;
    // What is wrong with it is not said in its own words: they may be a secret's.
    let extras: BuildExtras = serde_json::from_slice(&document)
        .map_err(|_| ApiError::invalid("the document in front of the context is not one"))?;
    request.secrets = secrets(extras.secrets)?;
    request.contexts = contexts(extras.contexts)?;
    request.agents = agents(extras.agents, extras.token)?;
    request.trace = extras.trace;
    request.kept = extras.kept.map(kept).transpose()?;
    request.attestations = extras.attestations.map(attestations).transpose()?.unwrap_or_default();
    if extras.cache_from.len() + request.cache_from.len() > CACHES_MAX || extras.cache_to.len() > CACHES_MAX {
        return Err(ApiError::invalid(format!("there are more than {CACHES_MAX} caches")));
    }
    request.cache_from.extend(extras.cache_from.into_iter().map(CacheSource::Layout));
    let (sender, chunks) = archive_channel();
    let output = output(&extras.output, &sender)?;
    request.cache_to = caches(&extras.cache_to, &sender)?;
    drop(sender);
    let answered = output.is_answered()
        || request.cache_to.iter().any(|target| matches!(target, CacheTarget::Layout { .. }));
    request.output = output;
    let engine = api.engine.clone();
    let context = SyncIoBridge::new(stream);
    let progress =
        transferred(move |progress| async move { engine.build(context, request, progress).await }).await?;
    Ok(if answered { multiplexed(progress, chunks) } else { progress })
}

/// Signs of who builds.
const BUILDER_MAX: usize = 1024;

fn attestations(given: BuildAttestations) -> Result<Attestations, ApiError> {
    let BuildAttestations { provenance, builder, sbom } = given;
    let provenance = match provenance.as_str() {
        "" => None,
        "min" => Some(Detail::Min),
        "max" => Some(Detail::Max),
        other => {
            return Err(ApiError::invalid(format!("provenance {other:?}: min or max is expected")));
        }
    };
    if builder.len() > BUILDER_MAX {
        return Err(ApiError::invalid(format!("the builder's id is longer than {BUILDER_MAX} bytes")));
    }
    Ok(Attestations { provenance, builder, parts: sbom })
}

/// Signs of an identity or a digest.
const NAME_MAX: usize = 128;

fn kept(given: BuildContext) -> Result<KeptContext, ApiError> {
    let BuildContext { id, base, index, name } = given;
    let hexadecimal =
        |text: &str| text.len() <= NAME_MAX && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if id.is_empty() || index.is_empty() || ![&id, &base, &index].iter().all(|text| hexadecimal(text)) {
        return Err(ApiError::invalid("a kept context has an id and digests of hexadecimal digits"));
    }
    Ok(KeptContext { id, base, index, name: name.chars().take(256).collect() })
}

/// The index of a context that is kept here; nothing if it is the one that the client has.
async fn context_index(State(api): State<Api>, params: Params) -> Answer {
    let text = |name: &str| params.text(name).unwrap_or_default();
    let index = api.engine.context_index(text("id"), text("index")).await?;
    let mut response = Response::new(index.clone().map_or_else(Body::empty, Body::from));
    *response.status_mut() = if index.is_some() { StatusCode::OK } else { StatusCode::NO_CONTENT };
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Where the engine writes what is answered beside progress.
fn output(name: &str, sender: &ArchiveSender) -> Result<Output, ApiError> {
    match name {
        "" => Ok(Output::Image),
        "archive" => Ok(Output::Archive(sender.clone())),
        "files" => Ok(Output::Files(sender.clone())),
        _ => Err(ApiError::invalid(format!("there is no output {name:?}: archive or files is expected"))),
    }
}

/// Where the cache goes. There is one layout at most.
fn caches(given: &[String], sender: &ArchiveSender) -> Result<Vec<CacheTarget>, ApiError> {
    let wrong = |text: &str| {
        ApiError::invalid(format!(
            "a cache goes to {text:?}: inline, registry:SCOPE:NAME or one layout:SCOPE is expected, with the scope \
             result or all"
        ))
    };
    let scope = |text: &str, name: &str| match name {
        "result" => Ok(CacheScope::Result),
        "all" => Ok(CacheScope::All),
        _ => Err(wrong(text)),
    };
    let mut layouts = 0;
    let mut read = |text: &String| match text.splitn(3, ':').collect::<Vec<_>>()[..] {
        ["inline"] => Ok(CacheTarget::Inline),
        ["registry", how, name] if !name.is_empty() => {
            Ok(CacheTarget::Registry { name: name.to_owned(), scope: scope(text, how)? })
        }
        ["layout", how] if layouts == 0 => {
            layouts += 1;
            Ok(CacheTarget::Layout { sender: sender.clone(), scope: scope(text, how)? })
        }
        _ => Err(wrong(text)),
    };
    given.iter().map(&mut read).collect()
}

/// Two streams in one, in the frames that attached streams have: the output is the first, progress the second.
fn multiplexed(progress: Response, output: ArchiveChunks) -> Response {
    let lines = progress.into_body().into_data_stream().filter_map(|line| ready(line.ok()));
    let lines = lines.map(|line| frame(2, &line));
    let output = stream::unfold(output, |mut output| async {
        // What went wrong is what the progress ends with.
        let chunk = output.recv().await?.ok()?;
        Some((frame(1, &chunk), output))
    });
    let both = stream::select(lines, output).map(Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(both));
    let kind = HeaderValue::from_static("application/vnd.docker.multiplexed-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn frame(stream: u8, content: &[u8]) -> Bytes {
    // Chunks are far smaller than what a length can say.
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[stream, 0, 0, 0], &length[..], content].concat().into()
}

/// Shorter words could be guessed.
const TOKEN_MIN: usize = 16;
const AGENTS_MAX: usize = 64;

fn agents(ids: Vec<String>, token: String) -> Result<AgentsGiven, ApiError> {
    if ids.len() > AGENTS_MAX || (!ids.is_empty() && token.len() < TOKEN_MIN) {
        return Err(ApiError::invalid(format!(
            "agents need a token of at least {TOKEN_MIN} bytes, and there may be {AGENTS_MAX} of them"
        )));
    }
    Ok(AgentsGiven { token, ids: ids.into_iter().collect() })
}

/// The connection becomes one to an agent of the client's.
async fn agent(
    State(api): State<Api>,
    Version(version): Version,
    params: Params,
    headers: HeaderMap,
    request: Request,
) -> Answer {
    let token = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let place = api.engine.agent_of_build(token, params.text("id").unwrap_or("default"))?;
    Takeover::of(request).answer(Framing::Raw, version, move |taken| async move {
        let Taken { descriptor, already_read } = taken;
        place.give(AttachedStream { descriptor, already_read }).await;
    })
}

fn contexts(given: Labels) -> Result<BTreeMap<String, NamedContext>, ApiError> {
    let read = given.into_iter().map(|(name, text)| match text.split_once(':') {
        None if text == "folder" => Ok((name, NamedContext::Folder)),
        Some(("image", image)) if !image.is_empty() => Ok((name, NamedContext::Image(image.to_owned()))),
        Some(("layout", wanted)) => Ok((name, NamedContext::Layout(wanted.to_owned()))),
        Some(("remote", address)) if !address.is_empty() => {
            address_of_context(address)?;
            Ok((name, NamedContext::Remote(address.to_owned())))
        }
        _ => Err(ApiError::invalid(format!(
            "the build context {name} is {text:?}: folder, image:NAME, layout:TAG or remote:ADDRESS is expected"
        ))),
    });
    read.collect()
}

fn secrets(given: Labels) -> Result<BTreeMap<String, Secret>, ApiError> {
    let decoded = given.into_iter().map(|(id, text)| match STANDARD.decode(text) {
        Ok(bytes) if bytes.len() <= SECRET_MAX => Ok((id, Secret::from(bytes))),
        Ok(_) => Err(ApiError::invalid(format!("secret {id} is larger than {SECRET_MAX} bytes"))),
        Err(_) => Err(ApiError::invalid(format!("secret {id} is not Base64"))),
    });
    decoded.collect()
}

fn request(headers: &HeaderMap, params: &Params) -> Result<BuildRequest, ApiError> {
    refuse(params)?;
    request_of(headers, params)
}

/// What both builders' requests say.
fn request_of(headers: &HeaderMap, params: &Params) -> Result<BuildRequest, ApiError> {
    if params.flag("squash") {
        return Err(ApiError::unsupported("squash is not available: COPY --from a stage makes one layer"));
    }
    Ok(BuildRequest {
        dockerfile: params.text("dockerfile").unwrap_or("Dockerfile").to_owned(),
        remote: remote(params)?,
        tags: params.all("t"),
        arguments: document(params, "buildargs")?,
        labels: document(params, "labels")?,
        target: params.text("target").unwrap_or_default().to_owned(),
        no_cache: params.flag("nocache"),
        no_cache_filter: params.all("nocachefilter"),
        pull: params.flag("pull"),
        trace: false,
        quiet: params.flag("q"),
        platform: params.text("platform").unwrap_or_default().to_lowercase(),
        host: host(params)?,
        secrets: BTreeMap::new(),
        credentials: credentials(headers)?,
        client: None,
        contexts: BTreeMap::new(),
        output: Output::Image,
        agents: AgentsGiven::default(),
        kept: None,
        cache_from: cache_from(params)?,
        cache_to: Vec::new(),
        attestations: Attestations::default(),
    })
}

/// Bytes of an address.
const ADDRESS_MAX: usize = 4096;

/// Where the context is, if it does not come.
fn remote(params: &Params) -> Result<String, ApiError> {
    let address = params.text("remote").unwrap_or_default();
    if params.text("version") == Some("2") && buildkit::IS_SENT.contains(&address) {
        return Ok(String::new());
    }
    address_of_context(address)?;
    Ok(address.to_owned())
}

/// Refuses what leads to nothing that is fetched; nothing is an address too.
fn address_of_context(address: &str) -> Result<(), ApiError> {
    let known = ["http://", "https://", "git://", "git@", "ssh://", "github.com/"];
    if address.len() > ADDRESS_MAX
        || !(address.is_empty() || known.iter().any(|start| address.starts_with(start)))
    {
        let address: String = address.chars().take(256).collect();
        return Err(ApiError::invalid(format!(
            "{address:?} is no address of a context: one of https, http or git is expected"
        )));
    }
    Ok(())
}

/// What this engine cannot do is said before anything is built.
fn refuse(params: &Params) -> Result<(), ApiError> {
    if params.text("session").is_some() {
        return Err(ApiError::unsupported("sessions are for builds with version=2"));
    }
    match params.text("outputs").filter(|outputs| !matches!(*outputs, "null" | "[]")) {
        Some(outputs) => {
            Err(ApiError::unsupported(format!("output {outputs} is not available in this version")))
        }
        None => Ok(()),
    }
}

/// Images whose configurations may tell what made their layers.
fn cache_from(params: &Params) -> Result<Vec<CacheSource>, ApiError> {
    let from: Vec<String> = document(params, "cachefrom")?;
    if from.len() > CACHES_MAX {
        return Err(ApiError::invalid(format!("there are more than {CACHES_MAX} caches")));
    }
    Ok(from.into_iter().map(CacheSource::Image).collect())
}

/// Limits and networks of the commands.
fn host(params: &Params) -> Result<HostConfig, ApiError> {
    let number = |name: &str| params.number::<i64>(name).map(Option::unwrap_or_default);
    let text = |name: &str| params.text(name).unwrap_or_default().to_owned();
    Ok(HostConfig {
        memory: number("memory")?,
        memory_swap: number("memswap")?,
        cpu_shares: number("cpushares")?,
        cpu_period: number("cpuperiod")?,
        cpu_quota: number("cpuquota")?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
        cgroup_parent: text("cgroupparent"),
        shm_size: number("shmsize")?,
        network_mode: text("networkmode"),
        extra_hosts: params
            .all("extrahosts")
            .iter()
            .flat_map(|hosts| hosts.split(','))
            .filter(|host| !host.is_empty())
            .map(str::to_owned)
            .collect(),
        ulimits: document(params, "ulimits")?,
        security_opt: params.all("securityopt").into_iter().filter(|option| option != "null").collect(),
        isolation: text("isolation"),
        ..HostConfig::default()
    })
}

/// A parameter that is JSON.
fn document<T: DeserializeOwned + Default>(params: &Params, name: &str) -> Result<T, ApiError> {
    let Some(text) = params.text(name) else { return Ok(T::default()) };
    let read: Option<T> = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(format!("{name} in the query: {error}")))?;
    Ok(read.unwrap_or_default())
}

/// Those of `X-Registry-Config`: a map from names of registries, JSON in Base64.
fn credentials(headers: &HeaderMap) -> Result<BTreeMap<String, Credentials>, ApiError> {
    let Some(header) = headers.get(CONFIG_HEADER) else { return Ok(BTreeMap::new()) };
    let wrong = |why: &str| ApiError::invalid(format!("X-Registry-Config: {why}"));
    let text = header.to_str().map_err(|_| wrong("it is not Base64"))?;
    Credentials::map_from_header(text).map_err(|error| wrong(&error.to_string()))
}

async fn prune(State(api): State<Api>, params: Params) -> Answer {
    let filters = params.filters()?;
    let keep = params.number::<u64>("keep-storage")?.or(params.number("reserved-space")?).unwrap_or(0);
    let (caches_deleted, space_reclaimed) = api.engine.prune_builds(PruneRequest { keep, filters }).await?;
    json(&BuildPruneResponse { caches_deleted, space_reclaimed })
}
