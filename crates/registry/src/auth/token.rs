//! Requests with authorization, obtained when a registry asks for it (Docker's "Token
//! Authentication Specification" and "OAuth2 Token Authentication").

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::{Challenge, Credentials, challenges};
use crate::error::printable;
use crate::http::{Ask, Http};
use crate::retry::retried;
use crate::{Error, Result};

const CLIENT: &str = "insula";
/// What a token is good for when its server does not say (the specification's default).
const LIFETIME: u64 = 60;
/// A token that ends sooner is renewed first.
const MARGIN: Duration = Duration::from_secs(5);

/// Requests to one registry by one user, about one thing.
#[derive(Debug)]
pub(crate) struct Session {
    http: Arc<Http>,
    credentials: Credentials,
    /// What a token has to allow, as `repository:NAME:pull`.
    scopes: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    header: Option<HeaderValue>,
    expires: Option<Instant>,
    /// The challenge that led to it, to renew it before it expires.
    challenge: Option<(Challenge, Url)>,
    /// Counts renewals, so that many requests that fail together cause one.
    generation: u64,
}

/// What a token server answers.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Session {
    pub(crate) fn new(http: Arc<Http>, credentials: Credentials, scopes: Vec<String>) -> Self {
        Self { http, credentials, scopes, state: Mutex::default() }
    }

    /// The same, of which more is allowed.
    pub(crate) fn with_scopes(mut self, more: impl Iterator<Item = String>) -> Self {
        self.scopes.extend(more);
        self.state = Mutex::default();
        self
    }

    pub(crate) fn http(&self) -> &Arc<Http> {
        &self.http
    }

    /// Sends a request, with authorization if the registry wants any. Answers of every status
    /// return; what wants other credentials is `401`.
    pub(crate) async fn send(&self, ask: Ask) -> Result<Response> {
        let Some(again) = ask.try_clone() else {
            // A body that cannot be had twice: the token has to be good before.
            let (header, _) = self.current().await?;
            return self.http.send(ask.authorized(header)).await;
        };
        let (header, generation) = self.current().await?;
        let url = ask.url.clone();
        let response = self.http.send(ask.authorized(header)).await?;
        // After a redirect it is not the registry who asks, and whoever it is gets nothing.
        if response.status() != StatusCode::UNAUTHORIZED || !same_origin(&url, response.url()) {
            return Ok(response);
        }
        match self.renew(response.headers(), &url, generation).await? {
            Some(header) => self.http.send(again.authorized(Some(header))).await,
            None => Ok(response),
        }
    }

    /// The authorization to use now.
    async fn current(&self) -> Result<(Option<HeaderValue>, u64)> {
        let mut state = self.state.lock().await;
        let expiring = state.expires.is_some_and(|at| at.saturating_duration_since(Instant::now()) < MARGIN);
        if let (true, Some((challenge, url))) = (expiring, state.challenge.clone()) {
            self.obtain(&mut state, &challenge, &url).await?;
        }
        Ok((state.header.clone(), state.generation))
    }

    /// A new authorization by the challenges of an answer, unless another request got one meanwhile;
    /// `None` if there is nothing more to offer.
    async fn renew(&self, headers: &HeaderMap, url: &Url, seen: u64) -> Result<Option<HeaderValue>> {
        let mut state = self.state.lock().await;
        if state.generation != seen {
            return Ok(state.header.clone());
        }
        let offered = headers.get_all(WWW_AUTHENTICATE).iter().take(8);
        let offered: Vec<Challenge> =
            offered.filter_map(|value| value.to_str().ok()).flat_map(challenges).collect();
        let of = |scheme: &str| offered.iter().find(|challenge| challenge.scheme == scheme);
        let Some(challenge) = of("bearer").or_else(|| of("basic")) else { return Ok(None) };
        // A token that was just obtained and is refused: another would be too.
        let fresh = state.expires.is_some_and(|at| at.saturating_duration_since(Instant::now()) >= MARGIN);
        if fresh && challenge.scheme == "bearer" {
            let offers_more = challenge.parameter("error") != Some("insufficient_scope");
            if !offers_more {
                return Ok(None);
            }
        }
        let challenge = challenge.clone();
        if self.obtain(&mut state, &challenge, url).await? { Ok(state.header.clone()) } else { Ok(None) }
    }

    /// Whether there is an authorization now that was not tried before.
    async fn obtain(&self, state: &mut State, challenge: &Challenge, url: &Url) -> Result<bool> {
        if let Credentials::Registry(token) = &self.credentials {
            let header =
                bearer(token).ok_or_else(|| Error::Invalid("the registry token is not one".to_owned()))?;
            let new = state.header.as_ref() != Some(&header);
            (state.header, state.generation) = (Some(header), state.generation + 1);
            return Ok(new);
        }
        if challenge.scheme == "basic" {
            let Some(header) = basic(&self.credentials) else { return Ok(false) };
            let new = state.header.as_ref() != Some(&header);
            (state.header, state.generation) = (Some(header), state.generation + 1);
            return Ok(new);
        }
        let answer = self.token(challenge, url, false).await?;
        let token = answer.token.or(answer.access_token).unwrap_or_default();
        let header = bearer(&token).filter(|_| !token.is_empty());
        let header = header
            .ok_or_else(|| Error::protocol("get a token", "there is no token in what its server says"))?;
        state.header = Some(header);
        state.expires = Some(
            Instant::now() + Duration::from_secs(answer.expires_in.unwrap_or(LIFETIME).clamp(1, 86_400)),
        );
        state.challenge = Some((challenge.clone(), url.clone()));
        state.generation += 1;
        Ok(true)
    }

    /// Asks for a token that may be kept and used for others later, as `login` does.
    pub(crate) async fn identity_token(&self, challenge: &Challenge, url: &Url) -> Result<Option<String>> {
        let answer = self.token(challenge, url, true).await?;
        Ok(answer.refresh_token.filter(|token| !token.is_empty()))
    }

    async fn token(&self, challenge: &Challenge, registry: &Url, offline: bool) -> Result<TokenAnswer> {
        let realm = realm(challenge, registry)?;
        let host = realm.host_str().unwrap_or_default().to_owned();
        let doing = format!("get a token from {host}");
        retried(&self.http.options().limits, || async {
            let ask = self.token_request(challenge, &realm, &doing, offline)?;
            let response = self.http.send(ask).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                    let why = crate::http::reason(self.http.options(), response).await;
                    return Err(Error::Unauthorized { host: host.clone(), why });
                }
                _ => return Err(crate::http::failed(self.http.options(), &doing, &doing, response).await),
            }
            let what = format!("the answer of {host}");
            let bytes = self.http.body(response, &what, self.http.options().limits.answer).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| Error::protocol(&doing, printable(&error.to_string())))
        })
        .await
    }

    /// With an identity token it is OAuth 2's form, otherwise a query, with name and password if there
    /// are any.
    fn token_request(&self, challenge: &Challenge, realm: &Url, doing: &str, offline: bool) -> Result<Ask> {
        let service = challenge.parameter("service").unwrap_or_default();
        let mut scopes = self.scopes.clone();
        if let (true, Some(scope)) = (scopes.is_empty(), challenge.parameter("scope")) {
            scopes.push(scope.to_owned());
        }
        if let Credentials::Identity(token) = &self.credentials {
            let body = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service)
                .append_pair("client_id", CLIENT)
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", token)
                .finish();
            return Ok(Ask::new(Method::POST, realm.clone(), doing).form(body));
        }
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("service", service).append_pair("client_id", CLIENT);
            for scope in &scopes {
                query.append_pair("scope", scope);
            }
            if let Credentials::Basic { user, .. } = &self.credentials {
                query.append_pair("account", user);
            }
            if offline {
                query.append_pair("offline_token", "true");
            }
        }
        let ask = Ask::new(Method::GET, url, doing);
        Ok(ask.authorized(basic(&self.credentials)))
    }
}

/// Where tokens are had. Credentials go there, so a registry that is spoken to by TLS cannot name a
/// place that is not.
fn realm(challenge: &Challenge, registry: &Url) -> Result<Url> {
    let text = challenge.parameter("realm").unwrap_or_default();
    let wrong =
        |why: &str| Error::protocol("get a token", format!("the token server {:?} {why}", printable(text)));
    let realm = Url::parse(text).map_err(|_| wrong("is not an address"))?;
    match realm.scheme() {
        "https" => {}
        "http" if registry.scheme() == "http" => {}
        _ => return Err(wrong("is not to be reached by TLS, as the registry is")),
    }
    if realm.host_str().is_none() || !realm.username().is_empty() || realm.password().is_some() {
        return Err(wrong("is not an address"));
    }
    Ok(realm)
}

pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let Credentials::Basic { user, password } = credentials else { return None };
    secret(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Ask {
    /// With this authorization, or without.
    pub(crate) fn authorized(mut self, header: Option<HeaderValue>) -> Self {
        if let Some(header) = header {
            self.headers.insert(AUTHORIZATION, header);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_by_tls_where_the_registry_does() {
        let challenge = |realm: &str| challenges(&format!("Bearer realm=\"{realm}\"")).remove(0);
        let tls = Url::parse("https://r.example").unwrap();
        let plain = Url::parse("http://127.0.0.1:5000").unwrap();
        assert!(realm(&challenge("https://a.example/t"), &tls).is_ok());
        assert!(realm(&challenge("http://a.example/t"), &tls).is_err());
        assert!(realm(&challenge("http://127.0.0.1:1/t"), &plain).is_ok());
        for bad in ["", "/token", "file:///etc/passwd", "https://u:p@a.example/", "ftp://x"] {
            assert!(realm(&challenge(bad), &plain).is_err(), "{bad}");
        }
    }
}
