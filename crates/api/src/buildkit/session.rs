//! `/session`: connections on which clients answer while they build.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;

use super::grpc::Channel;
use crate::error::ApiError;

const ID: &str = "x-docker-expose-session-uuid";
const METHOD: &str = "x-docker-expose-session-grpc-method";
/// Signs of an id, methods of a client, and sessions at once.
const ID_MAX: usize = 128;
const METHODS_MAX: usize = 256;
const SESSIONS_MAX: usize = 1024;
/// Every client of BuildKit's serves it.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// A build may come before its session.
const PATIENCE: Duration = Duration::from_secs(10);

/// One client, as long as it is there.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) channel: Channel,
    methods: Arc<HashSet<String>>,
}

impl Session {
    /// Whether it answers to a method: `/service/Method`.
    pub(super) fn serves(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }
}

/// Those that are open or about to be, by id.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    places: Mutex<HashMap<String, Place>>,
    /// One more is open.
    more: Notify,
}

/// An id that is taken, and the session once it is open.
#[derive(Debug)]
struct Place {
    number: u64,
    session: Option<Session>,
}

/// Holds an id from the request on, so that no other connection gets it. Dropped, it is free.
#[derive(Debug)]
struct Taken {
    sessions: Arc<Sessions>,
    id: String,
    /// Tells it from who had the id before or has it after.
    number: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut places = self.sessions.places();
        if places.get(&self.id).is_some_and(|place| place.number == self.number) {
            places.remove(&self.id);
        }
    }
}

impl Sessions {
    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id, if it is free.
    fn take(self: &Arc<Self>, id: &str) -> Option<Taken> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut places = self.places();
        if places.len() >= SESSIONS_MAX || places.contains_key(id) {
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        places.insert(id.to_owned(), Place { number, session: None });
        Some(Taken { sessions: self.clone(), id: id.to_owned(), number })
    }

    /// Makes a session known, unless it ended before: then its place is free, or another's.
    fn known(&self, id: &str, number: u64, session: Session) {
        if let Some(place) = self.places().get_mut(id).filter(|place| place.number == number) {
            place.session = Some(session);
        }
        self.more.notify_waiters();
    }

    /// The session of this id, for which is waited for a while.
    pub(super) async fn wait(&self, id: &str) -> Result<Session, ApiError> {
        if id.is_empty() {
            return Err(ApiError::invalid(
                "a build with version=2 names the session of its client: DOCKER_BUILDKIT=0 builds without one",
            ));
        }
        let find = async {
            loop {
                let mut more = std::pin::pin!(self.more.notified());
                more.as_mut().enable();
                if let Some(session) = self.places().get(id).and_then(|place| place.session.clone()) {
                    return session;
                }
                more.await;
            }
        };
        tokio::time::timeout(PATIENCE, find)
            .await
            .map_err(|_| ApiError::invalid(format!("no session {id:.128} was opened: a build needs one")))
    }
}

/// Takes a connection over, on which the client answers from then on.
pub(crate) fn open(kit: &super::BuildKit, mut request: Request) -> Result<Response, ApiError> {
    let headers = request.headers();
    let id = text(headers, ID).filter(|id| !id.is_empty() && id.len() <= ID_MAX);
    let id = id.ok_or_else(|| ApiError::invalid(format!("a session has an id in {ID}")))?.to_owned();
    let methods = headers.get_all(METHOD).iter().take(METHODS_MAX);
    let methods = methods.filter_map(|value| Some(value.to_str().ok()?.to_ascii_lowercase())).collect();
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| {
        ApiError::invalid("a session asks for an upgrade to h2c: the client answers on the connection")
    })?;
    let sessions = kit.sessions.clone();
    let taken = sessions
        .take(&id)
        .ok_or_else(|| ApiError::new(StatusCode::CONFLICT, format!("the session {id} cannot be opened")))?;
    tokio::spawn(async move {
        let stream = match upgrade.await {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a session was not opened"),
        };
        let number = taken.number;
        match Channel::open(stream, move || drop(taken)).await {
            Ok(channel) => {
                listens(&channel).await;
                sessions.known(&id, number, Session { channel, methods: Arc::new(methods) });
            }
            Err(error) => tracing::debug!(%error, "a session was not opened"),
        }
    });
    Ok(switching())
}

/// Waits until the client has answered something. Docker's hangs if its build is refused between our `101` and its
/// having begun to serve: it stops what has not begun, and begins it then, with nobody to stop it any more.
async fn listens(channel: &Channel) {
    // Whatever it answers, also that it knows no such method, it is there. One that is gone is seen as closed.
    let answer = tokio::time::timeout(PATIENCE, channel.ask::<()>(HEALTH, &())).await;
    if answer.is_err() {
        tracing::debug!("the client of a session does not answer");
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The connection is HTTP/2 from here on.
pub(super) fn switching() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.extensions_mut().insert(ReasonPhrase::from_static(b"Switching Protocols"));
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_connections_from_its_request_to_its_end() {
        let sessions = Arc::new(Sessions::default());
        let first = sessions.take("a").unwrap();
        // Though nothing of the first is open yet.
        assert!(sessions.take("a").is_none());
        assert!(sessions.take("b").is_some());
        let number = first.number;
        drop(first);
        let second = sessions.take("a").unwrap();
        assert_ne!(second.number, number);
        // What the first still does is none of the second's business.
        drop(Taken { sessions: sessions.clone(), id: "a".to_owned(), number });
        assert!(sessions.take("a").is_none());
        drop(second);
        assert!(sessions.places().is_empty());
    }
}
