//! Requests: one client for each host with the certificates that belong to it, redirects that
//! carry credentials to nobody else, bodies of bounded size and pace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::{Body, Client, Response};
use serde::Deserialize;
use url::Url;

use crate::auth::same_origin;
use crate::error::{is_certificate, printable};
use crate::options::{Limits, Options, is_loopback};
use crate::{Error, Result, tls};

const AGENT: &str = concat!("insula/", env!("CARGO_PKG_VERSION"));
/// Bytes of an error's explanation.
const REASON_MAX: u64 = 64 << 10;
/// Connections kept for the next request.
const IDLE_CONNECTIONS: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(30);

/// A request.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    body: Option<Body>,
    /// For messages: `get the manifest of x`.
    doing: String,
}

impl Ask {
    pub(crate) fn new(method: Method, url: Url, doing: &str) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None, doing: doing.to_owned() }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // What is not fit for a header was refused where it came in.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) fn form(self, body: String) -> Self {
        self.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
    }

    /// Another one of it, unless its body is a stream.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        let body = match &self.body {
            Some(body) => Some(Body::from(Bytes::copy_from_slice(body.as_bytes()?))),
            None => None,
        };
        Some(Self {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            body,
            doing: self.doing.clone(),
        })
    }
}

/// The way to all registries.
#[derive(Debug)]
pub(crate) struct Http {
    options: Arc<Options>,
    tls: tls::Trust,
    clients: Mutex<HashMap<String, Client>>,
}

impl Http {
    pub(crate) fn new(options: Options) -> Self {
        Self { options: Arc::new(options), tls: tls::Trust::default(), clients: Mutex::default() }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Sends a request and follows its redirects if it only asks for something. Answers of every
    /// other status return.
    pub(crate) async fn send(&self, mut ask: Ask) -> Result<Response> {
        let mut followed = 0;
        let mut body = ask.body.take();
        loop {
            let client = self.client(&ask.url)?;
            let mut request =
                client.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
            if let Some(body) = body.take() {
                request = request.body(body);
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(source) => {
                    // Certificates may be put into place until the next time.
                    if is_certificate(&source) {
                        self.forget(&ask.url);
                    }
                    // Addresses that storage services sign are secrets.
                    return Err(Error::Connection { doing: ask.doing, source: source.without_url() });
                }
            };
            let Some(next) = redirect(&ask, &response)? else { return Ok(response) };
            followed += 1;
            if followed > self.options.limits.redirects {
                return Err(Error::Redirect {
                    doing: ask.doing,
                    why: format!("there are more than {}", self.options.limits.redirects),
                });
            }
            if !same_origin(&ask.url, &next) {
                ask.headers.remove(AUTHORIZATION);
            }
            ask.url = next;
        }
    }

    /// The client for the host of an address.
    fn client(&self, url: &Url) -> Result<Client> {
        let domain = authority(url);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&domain) {
            return Ok(client.clone());
        }
        let limits = &self.options.limits;
        let mut builder = Client::builder()
            .user_agent(AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(limits.connect)
            .read_timeout(limits.idle)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIME)
            .tls_backend_preconfigured(self.tls.configuration(&self.options, &domain)?);
        if is_loopback(&domain) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| Error::Connection {
            doing: format!("set up the connection to {domain}"),
            source: source.without_url(),
        })?;
        clients.insert(domain, client.clone());
        Ok(client)
    }

    /// Forgets a host's certificates, which may have been changed.
    pub(crate) fn forget(&self, url: &Url) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&authority(url));
    }

    /// A whole body of at most `limit` bytes.
    pub(crate) async fn body(&self, response: Response, what: &str, limit: u64) -> Result<Vec<u8>> {
        read(&self.options.limits, response, what, limit).await
    }
}

/// Where an answer sends a request that only asks; an error if it must not be followed.
fn redirect(ask: &Ask, response: &Response) -> Result<Option<Url>> {
    let status = response.status();
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let wrong = |why: String| Error::Redirect { doing: ask.doing.clone(), why };
    if ask.method != Method::GET && ask.method != Method::HEAD {
        return Err(wrong("what is sent goes to the registry alone".to_owned()));
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| ask.url.join(location).ok());
    let Some(next) = next else { return Err(wrong("it does not say where to".to_owned())) };
    match (ask.url.scheme(), next.scheme()) {
        ("http", "http" | "https") | ("https", "https") => {}
        (from, to) => return Err(wrong(format!("from {from} to {}", printable(to)))),
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(wrong("its address has credentials".to_owned()));
    }
    Ok(Some(next))
}

/// `HOST[:PORT]`, the port if it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

async fn read(limits: &Limits, mut response: Response, what: &str, limit: u64) -> Result<Vec<u8>> {
    let too_long = || Error::TooLong { what: what.to_owned(), limit };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_long());
    }
    let mut pace = Pace::new(limits);
    let mut bytes = Vec::new();
    while let Some(chunk) = pace.chunk(&mut response, what).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Watches that a body does not trickle. Only time that was spent waiting for it counts.
#[derive(Debug)]
pub(crate) struct Pace {
    limits: Limits,
    waited: Duration,
    got: u64,
}

impl Pace {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), waited: Duration::ZERO, got: 0 }
    }

    /// The next piece of a body; `None` is its end.
    pub(crate) async fn chunk(&mut self, response: &mut Response, what: &str) -> Result<Option<Bytes>> {
        let since = Instant::now();
        let left = self.limits.window.saturating_sub(self.waited);
        let chunk = match tokio::time::timeout(left, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|source| Error::Connection {
                doing: format!("download {what}"),
                source: source.without_url(),
            })?,
            Err(_) => return Err(self.slow(what)),
        };
        self.waited += since.elapsed();
        self.got += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.got >= self.limits.least {
            (self.waited, self.got) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }

    fn slow(&self, what: &str) -> Error {
        Error::Slow { what: what.to_owned(), least: self.limits.least, seconds: self.limits.window.as_secs() }
    }
}

/// The error that an answer stands for. `what` is what was asked for, as the object of a sentence.
pub(crate) async fn failed(options: &Options, what: &str, doing: &str, response: Response) -> Error {
    let status = response.status();
    let wait = retry_after(response.headers());
    let why = reason(options, response).await;
    let what = what.to_owned();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied { what, why },
        StatusCode::NOT_FOUND => Error::NotFound { what, why },
        _ => {
            let why = if why.is_empty() { why } else { format!(": {why}") };
            Error::Status { doing: doing.to_owned(), status, why, wait }
        }
    }
}

/// Seconds; dates are not worth the clocks that disagree.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[derive(Deserialize)]
struct Explanation {
    #[serde(default)]
    errors: Vec<Cause>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What an answer says about its failure, in Docker's form: `manifest unknown: manifest unknown`.
pub(crate) async fn reason(options: &Options, response: Response) -> String {
    let status = response.status();
    let fallback = || status.canonical_reason().unwrap_or_default().to_lowercase();
    let Ok(bytes) = read(&options.limits, response, "an explanation", REASON_MAX).await else {
        return fallback();
    };
    explain(&bytes).unwrap_or_else(fallback)
}

fn explain(bytes: &[u8]) -> Option<String> {
    let said: Explanation = serde_json::from_slice(bytes).ok()?;
    let causes = said.errors.iter().take(4).map(|cause| {
        let code = cause.code.to_lowercase().replace('_', " ");
        match (code.as_str(), cause.message.as_str()) {
            ("", message) => message.to_owned(),
            (code, "") => code.to_owned(),
            (code, message) => format!("{code}: {message}"),
        }
    });
    let causes: Vec<String> = causes.filter(|cause| !cause.is_empty()).collect();
    let text = if causes.is_empty() { said.details.or(said.message)? } else { causes.join("; ") };
    Some(printable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_have_dockers_form() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(explain(body).unwrap(), "manifest unknown: manifest unknown");
        assert_eq!(
            explain(br#"{"details":"incorrect username or password"}"#).unwrap(),
            "incorrect username or password"
        );
        assert_eq!(explain(b"<html>"), None);
        assert_eq!(explain(b"{}"), None);
    }
}
