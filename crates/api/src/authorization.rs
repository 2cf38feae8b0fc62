//! Authorization plugins: programs that are asked about each request, and about its answer, over a
//! unix socket in Docker's protocol (`AuthZPlugin.AuthZReq`, `AuthZPlugin.AuthZRes`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use crate::error::ApiError;
use crate::request::MAX_JSON;

/// Where plugins that are given by name have their sockets.
const FOLDER: &str = "/run/docker/plugins";
/// How long one may think. A request that nobody answers for is refused.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// The largest answer that is shown to plugins; larger ones are not, as with Docker. Of requests every document
/// that is read is shown.
const MAX_SHOWN: usize = 1 << 20;
/// The largest answer of a plugin.
const MAX_ANSWER: usize = 1 << 20;

/// The plugins, in the order in which they are asked.
#[derive(Debug, Clone, Default)]
pub struct Authorization(Arc<[Plugin]>);

/// One of them.
#[derive(Debug)]
struct Plugin {
    name: String,
    socket: PathBuf,
    activated: OnceCell<()>,
}

/// A plugin that did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("connect to {path:?}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Talk(String),
    #[error("it did not answer within {PATIENCE:?}")]
    Late,
    #[error("its answer is not the expected document")]
    Answer(#[source] serde_json::Error),
    #[error("it is no authorization plugin: it implements {0:?}")]
    Kind(Vec<String>),
    #[error("{0}")]
    Said(String),
}

/// Who sent a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// Certificates of a TLS client, the own one first.
    pub(crate) certificates: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    #[serde(skip_serializing_if = "String::is_empty")]
    user_auth_n_method: String,
    request_method: String,
    #[serde(rename = "RequestUri")]
    request_uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_body: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    request_headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    request_peer_certificates: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_body: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    response_headers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Verdict {
    allow: bool,
    msg: String,
    err: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Manifest {
    implements: Vec<String>,
}

impl Authorization {
    /// Plugins by name (a socket in `/run/docker/plugins`) or by the path of their socket.
    #[must_use]
    pub fn new(plugins: &[String]) -> Self {
        let plugin = |text: &String| {
            let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
            if !path.is_absolute() {
                let socket = Path::new(FOLDER).join(format!("{text}.sock"));
                return Plugin { name: text.clone(), socket, activated: OnceCell::new() };
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            Plugin { name, socket: path.to_owned(), activated: OnceCell::new() }
        };
        Self(plugins.iter().map(plugin).collect())
    }

    /// Asks all about the request, lets it be answered, and asks about the answer in reverse order.
    pub(crate) async fn guard<F>(
        &self,
        peer: &Peer,
        request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Response
    where
        F: Future<Output = Response>,
    {
        if self.0.is_empty() {
            return answer(request).await;
        }
        match self.try_guard(peer, request, answer).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    }

    async fn try_guard<F>(
        &self,
        peer: &Peer,
        request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Result<Response, ApiError>
    where
        F: Future<Output = Response>,
    {
        let (request, body) = shown(request).await?;
        let mut question = Question::about(&request, body, peer);
        for plugin in self.0.iter() {
            plugin.ask("AuthZPlugin.AuthZReq", &question).await?;
        }
        let response = answer(request).await;
        // The connection is the container's from here on.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            || response.extensions().get::<crate::plain::Claimed>().is_some()
        {
            return Ok(response);
        }
        let (response, body) = shown_answer(response).await;
        question.response_status_code = Some(response.status().as_u16());
        question.response_headers = flat(response.headers());
        question.response_body = body;
        for plugin in self.0.iter().rev() {
            plugin.ask("AuthZPlugin.AuthZRes", &question).await?;
        }
        Ok(response)
    }
}

impl Question {
    fn about(request: &Request, body: Option<String>, peer: &Peer) -> Self {
        let tls = !peer.certificates.is_empty();
        Self {
            user_auth_n_method: if tls { "TLS".to_owned() } else { String::new() },
            request_method: request.method().to_string(),
            request_uri: request.uri().to_string(),
            request_body: body,
            request_headers: flat(request.headers()),
            request_peer_certificates: peer
                .certificates
                .iter()
                .map(|der| STANDARD.encode(pem(der)))
                .collect(),
            response_status_code: None,
            response_body: None,
            response_headers: BTreeMap::new(),
        }
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Headers as plugins see them; passwords for registries are none of their business.
fn flat(headers: &HeaderMap) -> BTreeMap<String, String> {
    let shown = headers.iter().filter(|(name, _)| !name.as_str().starts_with("x-registry-"));
    shown
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// A JSON body in base64, and the request as it was. Nothing that would be read as JSON is hidden from plugins,
/// whether or not its length is said; what is larger than any document is refused.
async fn shown(request: Request) -> Result<(Request, Option<String>), ApiError> {
    let path = request.uri().path();
    let length = request.body().size_hint().exact();
    // What follows the document of an exec's start is the input of a process.
    let goes_on = length.is_none() && path.contains("/exec/") && path.ends_with("/start");
    // `/auth` carries a password.
    if length == Some(0) || goes_on || !is_json(request.headers()) || path.ends_with("/auth") {
        return Ok((request, None));
    }
    let (parts, body) = request.into_parts();
    let bytes = crate::request::read_bounded(body, MAX_JSON).await?;
    let text = (!bytes.is_empty()).then(|| STANDARD.encode(&bytes));
    Ok((Request::from_parts(parts, Body::from(bytes)), text))
}

async fn shown_answer(response: Response) -> (Response, Option<String>) {
    let length = response.body().size_hint().exact();
    let fits = length.is_some_and(|length| length > 0 && length <= MAX_SHOWN as u64);
    if !fits || !is_json(response.headers()) {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = STANDARD.encode(&bytes);
    (Response::from_parts(parts, Body::from(bytes)), Some(text))
}

impl Plugin {
    async fn ask(&self, call: &str, question: &Question) -> Result<(), ApiError> {
        let verdict = async {
            self.activated.get_or_try_init(|| self.activate()).await?;
            let verdict: Verdict = self.call(call, question).await?;
            if verdict.err.is_empty() { Ok(verdict) } else { Err(PluginError::Said(verdict.err)) }
        };
        match verdict.await {
            Ok(Verdict { allow: true, .. }) => Ok(()),
            Ok(Verdict { msg, .. }) => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!("authorization denied by plugin {}: {msg}", self.name),
            )),
            Err(error) => Err(ApiError::internal(format!(
                "plugin {} failed with error: {call}: {}",
                self.name,
                insula_base::chain(&error)
            ))),
        }
    }

    async fn activate(&self) -> Result<(), PluginError> {
        let manifest: Manifest = self.call("Plugin.Activate", &serde_json::json!({})).await?;
        if manifest.implements.iter().any(|kind| kind == "authz") {
            return Ok(());
        }
        Err(PluginError::Kind(manifest.implements))
    }

    async fn call<Q: Serialize, A: for<'de> Deserialize<'de>>(
        &self,
        call: &str,
        question: &Q,
    ) -> Result<A, PluginError> {
        let talk = async {
            let bytes = serde_json::to_vec(question).map_err(PluginError::Answer)?;
            let answer = self.post(call, bytes).await?;
            serde_json::from_slice(&answer).map_err(PluginError::Answer)
        };
        tokio::time::timeout(PATIENCE, talk).await.map_err(|_| PluginError::Late)?
    }

    async fn post(&self, call: &str, body: Vec<u8>) -> Result<bytes::Bytes, PluginError> {
        let talk = |error: &dyn std::error::Error| PluginError::Talk(insula_base::chain(error));
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| PluginError::Connect { path: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| talk(&e))?;
        tokio::spawn(connection);
        let request = http::Request::post(format!("/{call}"))
            .header(header::HOST, "plugin")
            .header(header::ACCEPT, "application/vnd.docker.plugins.v1.2+json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes::Bytes::from(body)))
            .map_err(|e| talk(&e))?;
        let response = sender.send_request(request).await.map_err(|e| talk(&e))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let answer = answer.map_err(|e| PluginError::Talk(e.to_string()))?.to_bytes();
        if status.is_success() {
            return Ok(answer);
        }
        Err(PluginError::Talk(format!("it answered {status}: {}", String::from_utf8_lossy(&answer).trim())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::routing::post;
    use serde_json::{Value, json};
    use tokio::net::UnixListener;

    use super::*;

    /// A plugin that lets everything pass but paths with `secret`, and answers with `hidden`.
    fn plugin(folder: &Path) -> (String, Arc<Mutex<Vec<Value>>>) {
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let asked = seen.clone();
        let router = Router::new()
            .route("/Plugin.Activate", post(async || json!({"Implements": ["authz"]}).to_string()))
            .route(
                "/{call}",
                post(async move |body: String| {
                    let question: Value = serde_json::from_str(&body).unwrap();
                    let bad = body.contains("secret") || question["ResponseStatusCode"] == 418;
                    asked.lock().unwrap().push(question);
                    json!({"Allow": !bad, "Msg": if bad { "not you" } else { "" }}).to_string()
                }),
            );
        let path = folder.join("guard.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (path.to_str().unwrap().to_owned(), seen)
    }

    fn request(path: &str) -> Request {
        let builder = Request::builder().method("POST").uri(path).header("content-type", "application/json");
        builder.header("x-registry-auth", "pw").body(Body::from(r#"{"a":1}"#)).unwrap()
    }

    async fn told(response: Response) -> (u16, String) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn plugins_decide_about_requests_and_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, seen) = plugin(folder.path());
        let guard = Authorization::new(&[socket]);
        let peer = Peer { certificates: vec![vec![1, 2, 3]] };
        let echo = async |request: Request| Response::new(request.into_body());
        let passed = guard.guard(&peer, request("/v1.41/containers/create?name=x"), echo).await;
        assert_eq!(told(passed).await, (200, r#"{"a":1}"#.to_owned()));
        let question = seen.lock().unwrap()[0].clone();
        assert_eq!(question["RequestUri"], "/v1.41/containers/create?name=x");
        assert_eq!(question["RequestBody"], STANDARD.encode(r#"{"a":1}"#));
        assert_eq!(question["UserAuthNMethod"], "TLS");
        assert!(question["RequestHeaders"].get("x-registry-auth").is_none());
        let refused = guard.guard(&peer, request("/secret"), echo).await;
        let (status, text) = told(refused).await;
        assert_eq!(status, 403);
        assert!(text.contains("authorization denied by plugin guard: not you"), "{text}");
        let teapot = async |_| StatusCode::IM_A_TEAPOT.into_response();
        assert_eq!(told(guard.guard(&peer, request("/tea"), teapot).await).await.0, 403);
    }

    #[tokio::test]
    async fn no_document_is_hidden_from_plugins() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, seen) = plugin(folder.path());
        let guard = Authorization::new(&[socket]);
        let echo = async |request: Request| Response::new(request.into_body());
        let in_pieces = |pieces: Vec<Vec<u8>>| {
            let pieces = pieces.into_iter().map(|piece| Ok::<_, io::Error>(bytes::Bytes::from(piece)));
            let builder = Request::builder().method("POST").uri("/containers/create");
            let builder = builder.header("content-type", "application/json; charset=utf-8");
            builder.body(Body::from_stream(futures_util::stream::iter(pieces))).unwrap()
        };
        // Its length is not said.
        let pieces = in_pieces(vec![br#"{"Privileged""#.to_vec(), b":true}".to_vec()]);
        let passed = guard.guard(&Peer::default(), pieces, echo).await;
        assert_eq!(told(passed).await, (200, r#"{"Privileged":true}"#.to_owned()));
        assert_eq!(seen.lock().unwrap()[0]["RequestBody"], STANDARD.encode(r#"{"Privileged":true}"#));
        // Blanks in front of it make it no less of a document.
        let padded = in_pieces(vec![vec![b' '; (1 << 20) + 1], b"{}".to_vec()]);
        assert_eq!(told(guard.guard(&Peer::default(), padded, echo).await).await.0, 200);
        let shown = seen.lock().unwrap()[2]["RequestBody"].as_str().unwrap().len();
        assert!(shown > 1 << 20, "{shown}");
        let never = async |_| panic!("answered");
        let endless = in_pieces(vec![vec![b' '; 1 << 20]; 5]);
        assert_eq!(told(guard.guard(&Peer::default(), endless, never).await).await.0, 413);
    }

    #[tokio::test]
    async fn who_does_not_answer_lets_nothing_pass() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("mute.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let guard = Authorization::new(&[socket.to_str().unwrap().to_owned()]);
        let never = async |_| panic!("answered");
        let (status, text) = told(guard.guard(&Peer::default(), request("/x"), never).await).await;
        assert_eq!(status, 500);
        assert!(text.contains("it did not answer within"), "{text}");
    }

    #[tokio::test]
    async fn nothing_passes_without_its_plugin() {
        let guard = Authorization::new(&["/no/such/plugin.sock".to_owned()]);
        let never = async |_| panic!("answered");
        let (status, text) = told(guard.guard(&Peer::default(), request("/x"), never).await).await;
        assert_eq!(status, 500);
        assert!(text.contains("plugin plugin failed with error"), "{text}");
    }
}
