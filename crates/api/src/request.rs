//! What a request carries besides its path: query parameters with Docker's meaning of true, and
//! JSON bodies of bounded size.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The largest JSON body that is read. Docker's largest real ones (a container with its seccomp
/// profile) are a tenth of it.
pub(crate) const MAX_JSON: usize = 4 << 20;

/// The query of a request, decoded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// The first value of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of this name, when it is not empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Every value of this name.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// Docker's booleans: everything is true but absence, nothing, `0`, `no`, `false` and `none`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    /// As [`Params::flag`], with another meaning of absence.
    pub(crate) fn flag_or(&self, name: &str, absent: bool) -> bool {
        self.get(name).map_or(absent, |value| {
            !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
        })
    }

    /// A number, absent or empty as `None`.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.text(name)
            .map(|value| {
                value.trim().parse().map_err(|_| {
                    ApiError::invalid(format!("{name}={value:?} in the query is not a number in range"))
                })
            })
            .transpose()
    }

    /// The parameter `filters`: `{"name": ["value", …]}`, or the older `{"name": {"value": true}}`.
    pub(crate) fn filters(&self) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
        self.text("filters").map_or_else(|| Ok(BTreeMap::new()), parse_filters)
    }
}

fn parse_filters(text: &str) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Values {
        List(Vec<String>),
        Set(BTreeMap<String, bool>),
    }
    let parsed: Option<BTreeMap<String, Values>> = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid(format!("invalid filters {text:?}: {error}")))?;
    Ok(parsed
        .unwrap_or_default()
        .into_iter()
        .map(|(name, values)| match values {
            Values::List(list) => (name, list),
            Values::Set(set) => {
                (name, set.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect())
            }
        })
        .collect())
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|error| ApiError::invalid(format!("the query of the request: {}", error.body_text())))
    }
}

/// What stands at the places of a path.
#[derive(Debug)]
pub(crate) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Path::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(found)| Self(found))
            .map_err(|error| ApiError::invalid(format!("the path of the request: {}", error.body_text())))
    }
}

/// A JSON body that has to be there.
#[derive(Debug)]
pub(crate) struct Json<T>(pub T);

/// A JSON body that may be absent or `null`: the default then.
#[derive(Debug)]
pub(crate) struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read_json(&parts.headers, body).await?;
        if bytes.is_empty() {
            return Err(ApiError::invalid("invalid JSON: got EOF while reading request body"));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        read_optional(&parts.headers, body).await.map(Self)
    }
}

/// A JSON body that may be absent, of a request that was taken apart.
pub(crate) async fn read_optional<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = read_json(headers, body).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    parse::<Option<T>>(&bytes).map(Option::unwrap_or_default)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    insula_models::from_request(bytes).map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

/// The body, empty or declared to be JSON.
async fn read_json(headers: &HeaderMap, body: Body) -> Result<bytes::Bytes, ApiError> {
    let bytes = read_bounded(body, MAX_JSON).await?;
    if !bytes.is_empty() {
        require_json(headers)?;
    }
    Ok(bytes)
}

pub(crate) async fn read_bounded(body: Body, limit: usize) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body of the request is larger than {limit} bytes"),
        )),
        Err(error) => Err(ApiError::invalid(format!("reading the body of the request: {error}"))),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "unsupported Content-Type header ({content_type}): must be 'application/json'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn truth_is_docker_s() {
        for off in ["", "0", "no", "False", " none "] {
            assert!(!params(&[("a", off)]).flag("a"), "{off:?}");
        }
        for on in ["1", "true", "yes", "x"] {
            assert!(params(&[("a", on)]).flag("a"), "{on:?}");
        }
        assert!(params(&[]).flag_or("a", true));
        assert!(!params(&[]).flag("a"));
    }

    #[test]
    fn both_forms_of_filters_are_read() {
        let new = parse_filters(r#"{"status":["running","exited"]}"#).unwrap();
        let old = parse_filters(r#"{"status":{"exited":true,"paused":false,"running":true}}"#).unwrap();
        assert_eq!(new["status"], ["running", "exited"]);
        assert_eq!(old["status"], ["exited", "running"]);
        assert!(parse_filters("null").unwrap().is_empty());
        for bad in ["{", "[]", r#"{"a":1}"#, r#"{"a":[1]}"#] {
            assert!(parse_filters(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_checked() {
        assert_eq!(params(&[("t", "5")]).number::<u32>("t").unwrap(), Some(5));
        assert_eq!(params(&[("t", "")]).number::<u32>("t").unwrap(), None);
        assert!(params(&[("t", "-5")]).number::<u32>("t").is_err());
    }
}
