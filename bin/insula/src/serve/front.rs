//! The side that others see: connections, TLS, who may ask, and what is handed on to the daemon. Of a request go
//! on only its path below `/v2/` and the headers that registries know; nothing else of the daemon can be reached.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::users::Users;
use crate::printer;

/// Connections at a time; others wait.
const CONNECTIONS: usize = 256;
/// How long a client may take for its handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request line and its headers may take.
const HEAD_MAX: usize = 32 << 10;

/// Headers that go on to the daemon, and those of its answers that come back.
const ASKED: [HeaderName; 5] =
    [header::ACCEPT, header::RANGE, header::CONTENT_RANGE, header::CONTENT_TYPE, header::CONTENT_LENGTH];
const ANSWERED: [HeaderName; 12] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::CACHE_CONTROL,
    header::LOCATION,
    header::RANGE,
    header::LINK,
    HeaderName::from_static("docker-content-digest"),
    HeaderName::from_static("docker-upload-uuid"),
    HeaderName::from_static("oci-subject"),
    HeaderName::from_static("oci-filters-applied"),
];

type Body = BoxBody<Bytes, hyper::Error>;

/// What others may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

/// See the module.
#[derive(Clone)]
pub(super) struct Front(Arc<Inner>);

struct Inner {
    /// The daemon's socket.
    daemon: PathBuf,
    users: Users,
    access: Access,
    tls: Option<TlsAcceptor>,
}

/// Reads a certificate and its key.
pub(super) fn tls(chain: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read the certificate {chain:?}"))?;
    let read = PrivateKeyDer::from_pem_file(key).with_context(|| format!("read the key {key:?}"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, read)
        .with_context(|| format!("use the certificate {chain:?} with the key {key:?}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Front {
    pub(super) fn new(daemon: PathBuf, users: Users, access: Access, tls: Option<TlsAcceptor>) -> Self {
        Self(Arc::new(Inner { daemon, users, access, tls }))
    }

    /// Serves everyone who connects.
    pub(super) async fn serve(self, listener: TcpListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // It is never closed.
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let front = self.clone();
                    tokio::spawn(async move {
                        let _slot = slot;
                        match front.0.tls.clone() {
                            None => front.talk(stream).await,
                            Some(tls) => {
                                let shaken = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await;
                                // Who does not finish it is not served.
                                if let Ok(Ok(stream)) = shaken {
                                    front.talk(stream).await;
                                }
                            }
                        }
                    });
                }
                Err(error) => {
                    printer::notice(&format!("accept a connection: {error}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let front = self.clone();
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        });
        // Clients that break off have their reasons.
        let _ = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.0.users.is_empty() {
            let credentials = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
            if !self.0.users.accept(credentials).await {
                let mut refused =
                    refusal(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
                let realm = HeaderValue::from_static("Basic realm=\"insula\"");
                refused.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
                return refused;
            }
        }
        let Some(path) = daemons_path(request.uri()) else {
            return refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "page not found");
        };
        if self.0.access == Access::Read && !matches!(*request.method(), Method::GET | Method::HEAD) {
            let why = "this registry is read only (insula serve-images --writable)";
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", why);
        }
        match self.hand_on(request, &path).await {
            Ok(response) => response,
            Err(error) => {
                printer::notice(&format!("{error:#}"));
                refusal(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the engine does not answer")
            }
        }
    }

    async fn hand_on(&self, request: Request<Incoming>, path: &str) -> anyhow::Result<Response<Body>> {
        let socket = &self.0.daemon;
        let stream = UnixStream::connect(socket).await.with_context(|| format!("connect to {socket:?}"))?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // What ends it is the error of the request as well.
        tokio::spawn(async move { connection.await.ok() });
        let (head, body) = request.into_parts();
        let mut handed =
            Request::builder().method(head.method).uri(path).header(header::HOST, "insula").body(body)?;
        copy(&ASKED, &head.headers, handed.headers_mut());
        let (head, body) = sender.send_request(handed).await.context("ask the daemon")?.into_parts();
        let mut response = Response::new(body.boxed());
        *response.status_mut() = head.status;
        copy(&ANSWERED, &head.headers, response.headers_mut());
        Ok(spoken(response))
    }
}

fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name.clone(), value.clone());
        }
    }
}

/// Where the daemon has what is asked for below `/v2/`.
fn daemons_path(uri: &Uri) -> Option<String> {
    let path = uri.path();
    let rest = if path == "/v2" { "" } else { path.strip_prefix("/v2/")? };
    // The daemon joins doubled slashes, and neither side knows what `..` is: it is in no name of a repository.
    if rest.split('/').any(|part| part == "..") {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("/insula/registry/{rest}{query}"))
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let document = serde_json::json!({"errors": [{"code": code, "message": message, "detail": null}]});
    let body = Full::new(Bytes::from(document.to_string())).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    spoken(response)
}

/// Says which protocol it is.
fn spoken(mut response: Response<Body>) -> Response<Body> {
    let name = HeaderName::from_static("docker-distribution-api-version");
    response.headers_mut().insert(name, HeaderValue::from_static("registry/2.0"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_registries_goes_on() {
        let of = |text: &str| daemons_path(&text.parse().unwrap());
        assert_eq!(of("/v2/").as_deref(), Some("/insula/registry/"));
        assert_eq!(of("/v2").as_deref(), Some("/insula/registry/"));
        assert_eq!(of("/v2/_catalog?n=2").as_deref(), Some("/insula/registry/_catalog?n=2"));
        assert_eq!(of("http://x/v2/a/tags/list").as_deref(), Some("/insula/registry/a/tags/list"));
        for outside in
            ["/", "/v2x/", "/info", "/v1.43/info", "//v2/", "/v2/../info", "/v2/a/../../../info", "/V2/"]
        {
            assert_eq!(of(outside), None, "{outside}");
        }
    }
}
