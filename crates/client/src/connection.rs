//! Connections and the four ways to use one: for an answer, a stream, nothing, or for good.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use insula_base::Lap;
use insula_models::{ApiVersion, AuthConfig, ErrorResponse, SERVER_TIMING, read_timing};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::address::Address;
use crate::body::RequestBody;
use crate::error::{Error, Result};
use crate::hijack::Hijacked;
use crate::stream::ByteStream;

/// No answer that is read as a whole is larger.
const MAX_ANSWER: usize = 256 << 20;

/// Bytes of an upload that wait in the kernel for the daemon.
const SEND_BUFFER: usize = 1 << 20;

/// A daemon, and connections to it that are idle.
#[derive(Debug)]
pub struct Client {
    address: Address,
    idle: Mutex<Vec<SendRequest<RequestBody>>>,
    /// What an older daemon has said to be its newest version.
    older: OnceLock<ApiVersion>,
    /// Of the last answer that says what its time went into.
    timing: Mutex<Vec<Lap>>,
}

impl Client {
    /// A client that connects when it is first used.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self { address, idle: Mutex::default(), older: OnceLock::new(), timing: Mutex::default() }
    }

    /// A client that is connected.
    pub async fn connect(address: Address) -> Result<Self> {
        let client = Self::new(address);
        client.connect_ahead().await?;
        Ok(client)
    }

    /// Opens one more connection, for a request to come.
    pub async fn connect_ahead(&self) -> Result<()> {
        self.put_back(self.open().await?);
        Ok(())
    }

    /// Where the daemon is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The version of the API that is spoken: the newest that both sides know, as far as the daemon has
    /// been asked anything.
    #[must_use]
    pub fn version_spoken(&self) -> ApiVersion {
        self.older.get().copied().unwrap_or(ApiVersion::MAX)
    }

    async fn open(&self) -> Result<SendRequest<RequestBody>> {
        let failed = |source| Error::Connect { address: self.address.clone(), source };
        let stream = UnixStream::connect(self.address.path()).await.map_err(failed)?;
        // A larger buffer saves both sides turns. The kernel gives what the host allows.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Error::Connection { call: "connect".to_owned(), source })?;
        // What ends the connection is also the error of the request in flight, reported there.
        tokio::spawn(async move { connection.with_upgrades().await.ok() });
        Ok(sender)
    }

    async fn take(&self) -> Result<SendRequest<RequestBody>> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match idle {
                Some(mut connection) => {
                    if connection.ready().await.is_ok() {
                        return Ok(connection);
                    }
                }
                None => return self.open().await,
            }
        }
    }

    fn put_back(&self, connection: SendRequest<RequestBody>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Sends a request and checks the status, in the version of an older daemon if it asks for that. The
    /// connection comes back with the answer, to be put back when the body was read.
    async fn exchange(
        &self,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<(Response<Incoming>, SendRequest<RequestBody>)> {
        call.check_name()?;
        let Some(again) = body.again() else {
            self.learn_version().await?;
            return self.send(call, body).await;
        };
        match self.send(call, body).await {
            Err(Error::Daemon { status: 400, message }) if self.is_older(&message) => {
                self.send(call, again).await
            }
            other => other,
        }
    }

    fn note_timing(&self, headers: &HeaderMap) {
        if let Some(text) = headers.get(SERVER_TIMING).and_then(|value| value.to_str().ok()) {
            *self.timing.lock().unwrap_or_else(PoisonError::into_inner) = read_timing(text);
        }
    }

    /// What the last answer that says so spent its time on; nothing when it was asked for before.
    #[must_use]
    pub fn take_timing(&self) -> Vec<Lap> {
        std::mem::take(&mut *self.timing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Before a body that can be sent only once.
    async fn learn_version(&self) -> Result<()> {
        if self.older.get().is_some() {
            return Ok(());
        }
        let call = Call::get("/_ping".to_owned());
        match self.send(&call, RequestBody::Empty).await {
            Ok((response, connection)) => {
                read(response.into_body(), &call).await?;
                self.put_back(connection);
            }
            Err(Error::Daemon { message, .. }) => {
                self.is_older(&message);
            }
            // The request itself will say it better.
            Err(_) => {}
        }
        Ok(())
    }

    /// Whether a refusal says that the daemon is older; from then on its version is spoken.
    fn is_older(&self, message: &str) -> bool {
        newest_of(message).is_some_and(|older| {
            // Another request may have learned it meanwhile.
            let _ = self.older.set(older);
            true
        })
    }

    async fn send(
        &self,
        call: &Call<'_>,
        body: RequestBody,
    ) -> Result<(Response<Incoming>, SendRequest<RequestBody>)> {
        let mut connection = self.take().await?;
        let request = call.request(body, self.version_spoken())?;
        let response = connection
            .send_request(request)
            .await
            .map_err(|source| Error::Connection { call: call.name(), source })?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS || call.accepts(status) {
            self.note_timing(response.headers());
            return Ok((response, connection));
        }
        let reason = status.canonical_reason().unwrap_or("no reason given");
        let body = read(response.into_body(), call).await?;
        self.put_back(connection);
        let message = match serde_json::from_slice::<ErrorResponse>(&body) {
            Ok(error) if !error.message.is_empty() => error.message,
            _ if body.is_empty() => format!("{} {reason}", status.as_u16()),
            _ => String::from_utf8_lossy(&body).trim().to_owned(),
        };
        Err(Error::Daemon { status: status.as_u16(), message })
    }

    /// A request whose answer is a document.
    pub(crate) async fn document<T: DeserializeOwned>(&self, call: Call<'_>, body: RequestBody) -> Result<T> {
        let bytes = self.whole(&call, body).await?;
        insula_models::from_json(&bytes)
            .map_err(|error| Error::Answer { call: call.name(), reason: error.to_string() })
    }

    /// A request whose answer is a document, as the daemon wrote it: the order of fields stays.
    pub(crate) async fn json_text(&self, call: Call<'_>, body: RequestBody) -> Result<String> {
        let bytes = self.whole(&call, body).await?;
        let wrong = |reason: String| Error::Answer { call: call.name(), reason };
        serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).map_err(|error| wrong(error.to_string()))?;
        String::from_utf8(bytes.into()).map_err(|error| wrong(error.to_string()))
    }

    /// A request whose answer's body does not matter.
    pub(crate) async fn nothing(&self, call: Call<'_>, body: RequestBody) -> Result<()> {
        self.whole(&call, body).await.map(drop)
    }

    pub(crate) async fn whole(&self, call: &Call<'_>, body: RequestBody) -> Result<Bytes> {
        let (response, connection) = self.exchange(call, body).await?;
        let bytes = read(response.into_body(), call).await?;
        self.put_back(connection);
        Ok(bytes)
    }

    /// A request of which only the answer's headers matter (HEAD).
    pub(crate) async fn headers(&self, call: Call<'_>) -> Result<HeaderMap> {
        let (response, connection) = self.exchange(&call, RequestBody::Empty).await?;
        let headers = response.headers().clone();
        self.put_back(connection);
        Ok(headers)
    }

    /// A request whose answer is read as it comes; its headers too.
    pub(crate) async fn stream(&self, call: Call<'_>, body: RequestBody) -> Result<(ByteStream, HeaderMap)> {
        let (response, _) = self.exchange(&call, body).await?;
        let (head, body) = response.into_parts();
        let content_type = text_of(&head.headers, header::CONTENT_TYPE);
        Ok((ByteStream::new(body, call.name(), content_type), head.headers))
    }

    /// A request that turns the connection into a raw stream.
    pub(crate) async fn hijack(&self, mut call: Call<'_>, body: RequestBody) -> Result<Hijacked> {
        call.upgrade = true;
        let (response, _connection) = self.exchange(&call, body).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let reason = format!("status {} in place of 101", response.status().as_u16());
            return Err(Error::Answer { call: call.name(), reason });
        }
        let content_type = text_of(response.headers(), header::CONTENT_TYPE);
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|source| Error::Connection { call: call.name(), source })?;
        Hijacked::new(upgraded, content_type.as_deref())
    }
}

/// The newest version of a daemon that has said ours to be too new.
fn newest_of(message: &str) -> Option<ApiVersion> {
    let (_, version) = message
        .split_once("is too new. Maximum supported API version is ")
        .filter(|_| message.len() < 256)?;
    version.trim().parse().ok().filter(|version| (ApiVersion::MIN..ApiVersion::MAX).contains(version))
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

async fn read(body: Incoming, call: &Call<'_>) -> Result<Bytes> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(source) => Err(Error::Connection { call: call.name(), source: *source }),
            Err(other) => Err(Error::Answer { call: call.name(), reason: other.to_string() }),
        },
    }
}

/// Method, path and query of a request; the version is put before the path.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    method: Method,
    path: String,
    content_type: Option<&'a str>,
    /// Of `X-Registry-Auth`.
    credentials: Option<HeaderValue>,
    registries: Option<HeaderValue>,
    /// Of `X-Insula-Build`.
    build: Option<HeaderValue>,
    upgrade: bool,
    accepts_not_modified: bool,
    /// Of `Accept`.
    accept: Option<&'static str>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            content_type: None,
            credentials: None,
            registries: None,
            build: None,
            upgrade: false,
            accepts_not_modified: false,
            accept: None,
        }
    }

    pub(crate) fn get(path: String) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: String) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn delete(path: String) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Whether it names what it is about. `/containers//json` would be the list.
    fn check_name(&self) -> Result<()> {
        const OBJECTS: [(&str, &str); 8] = [
            ("/containers/", "container"),
            ("/images/", "image"),
            ("/distribution/", "image"),
            ("/volumes/", "volume"),
            ("/networks/", "network"),
            ("/exec/", "exec"),
            ("/insula/tenants/", "tenant"),
            ("/insula/containers/", "container"),
        ];
        // Slashes of names are encoded.
        let path = self.path.split('?').next().unwrap_or_default();
        for (prefix, object) in OBJECTS {
            if path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Err(Error::EmptyName { object });
            }
        }
        Ok(())
    }

    /// With the media type that is wanted.
    pub(crate) fn accepting(mut self, media_type: &'static str) -> Self {
        self.accept = Some(media_type);
        self
    }

    pub(crate) fn json(mut self) -> Self {
        self.content_type = Some("application/json");
        self
    }

    pub(crate) fn tar(mut self) -> Self {
        self.content_type = Some("application/x-tar");
        self
    }

    /// With credentials for a registry.
    pub(crate) fn with_credentials(mut self, auth: &AuthConfig) -> Self {
        let text = serde_json::to_vec(auth).map(|bytes| URL_SAFE.encode(bytes));
        // Base64 is always fit for a header, and an AuthConfig for JSON.
        let value = text.ok().and_then(|text| HeaderValue::from_str(&text).ok());
        self.credentials = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// With credentials for several registries.
    pub(crate) fn with_registries(
        mut self,
        by_name: &std::collections::BTreeMap<String, AuthConfig>,
    ) -> Self {
        let text = serde_json::to_vec(by_name).map(|bytes| URL_SAFE.encode(bytes));
        let value = text.ok().and_then(|text| HeaderValue::from_str(&text).ok());
        self.registries = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// With the word that names a build.
    pub(crate) fn with_build(mut self, token: &str) -> Self {
        self.build = HeaderValue::from_str(token).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// 304 is success: the container is in that state already.
    pub(crate) fn or_unchanged(mut self) -> Self {
        self.accepts_not_modified = true;
        self
    }

    fn accepts(&self, status: StatusCode) -> bool {
        self.accepts_not_modified && status == StatusCode::NOT_MODIFIED
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn request(&self, body: RequestBody, version: ApiVersion) -> Result<Request<RequestBody>> {
        let uri = format!("/v{version}{}", self.path);
        let mut request =
            Request::builder().method(self.method.clone()).uri(uri).header(header::HOST, "insula");
        if let Some(content_type) = self.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(media_type) = self.accept {
            request = request.header(header::ACCEPT, media_type);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header("x-registry-auth", credentials);
        }
        if let Some(registries) = &self.registries {
            request = request.header("x-registry-config", registries);
        }
        if let Some(build) = &self.build {
            request = request.header("x-insula-build", build);
        }
        if self.upgrade {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
        }
        request.body(body).map_err(|error| Error::Io {
            doing: format!("make the request {}", self.name()),
            source: io::Error::other(error),
        })
    }
}

/// A document as a body.
pub(crate) fn json(document: &impl Serialize) -> Result<RequestBody> {
    serde_json::to_vec(document).map(RequestBody::bytes).map_err(|error| Error::Io {
        doing: "write a document as JSON".to_owned(),
        source: io::Error::other(error),
    })
}
