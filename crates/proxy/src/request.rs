//! One request: whom it is for, and what comes back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use insula_spec::sites::Speech;
use tokio::io::copy_bidirectional;

use crate::body::{Answer, RequestBody, ResponseBody};
use crate::connection::Origin;
use crate::headers::{self, Asked};
use crate::limits;
use crate::table::Site;
use crate::target::{Sender, Use};

/// What stays without TLS where there is a certificate: who proves that a name is its own, to get the next one, is
/// asked there (RFC 8555, 8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// What is said instead of a container.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    why: String,
    location: Option<HeaderValue>,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), location: None }
    }

    fn response(self) -> Response<ResponseBody> {
        let mut response =
            Response::new(Either::Left(Full::new(Bytes::from(format!("insula: {}\n", self.why)))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, location);
        }
        response
    }
}

/// What a container answers, or why none does.
pub(crate) async fn answer(request: Request<Incoming>, origin: &Arc<Origin>) -> Response<ResponseBody> {
    match forward(request, origin).await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::debug!(status = refusal.status.as_u16(), why = refusal.why, "refused");
            refusal.response()
        }
    }
}

async fn forward(
    mut request: Request<Incoming>,
    origin: &Arc<Origin>,
) -> Result<Response<ResponseBody>, Refusal> {
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this is no proxy for CONNECT"));
    }
    let asked = headers::asked(&parts)
        .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the request names no host, or not one only"))?;
    let site = find(&asked, origin)?;
    lead_to_tls(&parts, &asked, &site, origin)?;
    let trailers = headers::takes_trailers(&parts.headers);
    let upgrade = headers::upgrade(&parts).filter(|_| site.speech != Speech::H2c);
    let arrival = &origin.arrival;
    headers::rewrite(&mut parts, &asked, arrival.client.address, arrival.secure, arrival.port);
    if let Some(protocol) = &upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol.clone());
    }
    if site.speech == Speech::H2c {
        headers::to_version_2(&mut parts, &asked, trailers)
            .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the host is no authority"))?;
    }
    let (mut response, sender, chosen) = send(parts, RequestBody::new(body), &site, &asked).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((client, _)) = client.zip(upgrade) else {
            let why = format!("the container of {} changes to a protocol that nobody asked for", asked.name);
            return Err(Refusal::new(StatusCode::BAD_GATEWAY, why));
        };
        return Ok(join(response, client, chosen, origin));
    }
    let busy = match sender {
        Some(sender) => {
            keep_when_read(sender, chosen);
            None
        }
        None => Some(chosen),
    };
    headers::strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(|body| Either::Right(Answer::new(body, busy))))
}

/// Sends who came without TLS to where there is a certificate of the name.
fn lead_to_tls(parts: &Parts, asked: &Asked, site: &Site, origin: &Arc<Origin>) -> Result<(), Refusal> {
    let Some(port) = origin.shared.https.first().map(SocketAddr::port) else { return Ok(()) };
    let wanted = site.speech == Speech::Http && !origin.arrival.secure;
    if !wanted
        || parts.uri.path().starts_with(CHALLENGES)
        || origin.shared.table().identity(&asked.name).is_none()
    {
        return Ok(());
    }
    // The older status may make a GET of another method.
    let safe = [Method::GET, Method::HEAD].contains(&parts.method);
    let status = if safe { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    let location = headers::secured(parts, asked, port);
    Err(Refusal { location, ..Refusal::new(status, format!("{} is served with TLS", asked.name)) })
}

/// Who answers to the name, for a client that came this way.
fn find(asked: &Asked, origin: &Arc<Origin>) -> Result<Arc<Site>, Refusal> {
    let name = &asked.name;
    if origin.identity.as_ref().is_some_and(|identity| !identity.covers(name)) {
        let why = format!("the certificate of this connection is not for {name}");
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, why));
    }
    let site =
        origin.shared.table().site(name).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, format!("no container is published as {name}"))
        })?;
    if site.speech == Speech::Tls {
        let why = format!("{name} is served with TLS only");
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, why));
    }
    Ok(site)
}

/// One container after the other, until one takes the request.
async fn send(parts: Parts, body: RequestBody, site: &Site, asked: &Asked) -> Result<Answered, Refusal> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut request = Request::from_parts(parts, body);
    while let Some(chosen) = site.choose(&tried) {
        let attempted = match site.speech {
            Speech::H2c => attempt_multiplexed(request, chosen).await,
            _ => attempt(request, chosen).await,
        };
        match attempted {
            Ok(done) => return Ok(done),
            Err((Some(unsent), address, error)) => {
                tracing::debug!(%address, %error, "a container does not take a request");
                tried.push(address);
                request = unsent;
            }
            Err((None, address, error)) => {
                tracing::debug!(%address, %error, "a container does not answer");
                let why = format!("the container of {} ended the connection without an answer", asked.name);
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, why));
            }
        }
    }
    Err(match tried.is_empty() {
        true => {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("no container of {} is up", asked.name))
        }
        false => Refusal::new(
            StatusCode::BAD_GATEWAY,
            format!("no container of {} accepts connections at its port", asked.name),
        ),
    })
}

/// What a container answers, and its connection if nobody else may use it meanwhile.
type Answered = (Response<Incoming>, Option<Sender>, Use);

/// The request comes back where the container has seen nothing of it, or may well see it twice.
type Failed = (Option<Request<RequestBody>>, SocketAddr, io::Error);

async fn attempt(mut request: Request<RequestBody>, chosen: Use) -> Result<Answered, Failed> {
    let target = chosen.target.clone();
    while let Some(mut sender) = target.kept() {
        // A kept connection may be closed by the container at the very moment of its use.
        let copy = repeatable(&request);
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Some(sender), chosen)),
            Err(mut failed) => match failed.take_message().or(copy) {
                Some(unsent) => request = unsent,
                None => return Err((None, target.address, io::Error::other(failed.into_error()))),
            },
        }
    }
    let mut sender = match target.speak().await {
        Ok(sender) => sender,
        Err(error) => return Err((Some(request), target.address, error)),
    };
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, Some(sender), chosen)),
        Err(mut failed) => {
            let unsent = failed.take_message();
            Err((unsent, target.address, io::Error::other(failed.into_error())))
        }
    }
}

/// As [`attempt`], over the connection of HTTP/2 that requests share.
async fn attempt_multiplexed(mut request: Request<RequestBody>, chosen: Use) -> Result<Answered, Failed> {
    let target = chosen.target.clone();
    loop {
        let (mut shared, new) = match target.multiplexed().await {
            Ok(found) => found,
            Err(error) => return Err((Some(request), target.address, error)),
        };
        let copy = repeatable(&request);
        let ready = shared.sender.ready().await;
        let (unsent, error) = match ready {
            Err(error) => (Some(request), error),
            Ok(()) => match shared.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, None, chosen)),
                Err(mut failed) => (failed.take_message().or(copy), failed.into_error()),
            },
        };
        // A stream may fail alone; the next request has another connection then, and the others keep theirs.
        target.forget(&shared).await;
        match unsent {
            Some(unsent) if !new => request = unsent,
            unsent => return Err((unsent, target.address, io::Error::other(error))),
        }
    }
}

/// The same once more, where that does no harm (RFC 9110, 9.2.2).
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !safe || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(RequestBody::default());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Keeps the connection to the container once the answer has been read.
fn keep_when_read(mut sender: Sender, chosen: Use) {
    tokio::spawn(async move {
        if sender.ready().await.is_ok() {
            chosen.target.keep(sender);
        }
        drop(chosen);
    });
}

/// After `101`: bytes go both ways until one side has enough.
fn join(
    mut response: Response<Incoming>,
    client: OnUpgrade,
    chosen: Use,
    origin: &Arc<Origin>,
) -> Response<ResponseBody> {
    let container = hyper::upgrade::on(&mut response);
    let mut ending = origin.shared.ending.subscribe();
    // The client's connection is counted as long as this goes on.
    let counted = (chosen.lasting(), origin.clone());
    tokio::spawn(async move {
        let _counted = counted;
        let joined = async {
            let (client, container) = tokio::try_join!(client, container).map_err(io::Error::other)?;
            copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(container)).await
        };
        tokio::select! {
            joined = joined => if let Err(error) = joined {
                tracing::debug!(%error, "an upgraded connection failed");
            },
            () = async {
                let _ = ending.wait_for(|ending| *ending).await;
                tokio::time::sleep(limits::DRAIN).await;
            } => {}
        }
    });
    let protocol = response.headers().get(UPGRADE).cloned();
    headers::strip(response.headers_mut());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(UPGRADE, protocol);
    }
    response.map(|_| Either::Left(Full::default()))
}
