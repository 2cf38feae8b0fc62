//! Search: the API of registries before the distribution specification, which Docker Hub and a few
//! others still have.

use http::header::ACCEPT;
use http::{Method, StatusCode};
use insula_spec::reference::DEFAULT_DOMAIN;
use serde::Deserialize;
use url::Url;

use crate::auth::Session;
use crate::http::{Ask, authority, failed};
use crate::repository::join;
use crate::{Credentials, Error, Registries, Result};

/// Where Docker Hub searches.
const HUB: &str = "https://index.docker.io/";
/// What Docker allows.
const RESULTS_MAX: u32 = 100;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// `TERM`, or `HOST[:PORT]/TERM`.
    pub term: String,
    /// 25 if 0.
    pub limit: u32,
}

/// One repository that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Found {
    pub name: String,
    pub description: Option<String>,
    pub star_count: i64,
    pub is_official: bool,
    pub is_automated: bool,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    results: Option<Vec<Found>>,
}

impl Registries {
    /// Repositories that match a term.
    pub async fn search(&self, search: &Search, credentials: &Credentials) -> Result<Vec<Found>> {
        if search.limit > RESULTS_MAX {
            return Err(Error::Invalid(format!(
                "limit {} is outside the range of [1, {RESULTS_MAX}]",
                search.limit
            )));
        }
        let (domain, term) = split(&search.term);
        let base = if domain == DEFAULT_DOMAIN {
            Url::parse(HUB).map_err(|error| Error::Invalid(error.to_string()))?
        } else {
            self.endpoint(domain)?.base(&self.http).await?.clone()
        };
        let mut url = join(&base, "v1/search")?;
        let limit = if search.limit == 0 { 25 } else { search.limit };
        url.query_pairs_mut().append_pair("q", term).append_pair("n", &limit.to_string());
        let doing = format!("search {domain}");
        let session = Session::new(self.http.clone(), credentials.clone(), Vec::new());
        let ask = Ask::new(Method::GET, url, &doing).header(ACCEPT, "application/json");
        let response = session.send(ask).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                return Err(Error::Unsupported(format!(
                    "the registry {} cannot be searched: it does not have the search of Docker Hub (v1/search)",
                    authority(&base)
                )));
            }
            _ => return Err(failed(self.options(), domain, &doing, response).await),
        }
        let bytes =
            self.http.body(response, "the results of the search", self.options().limits.answer).await?;
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| Error::protocol(&doing, crate::error::printable(&error.to_string())))?;
        let mut found = answer.results.unwrap_or_default();
        found.truncate(limit as usize);
        for one in &mut found {
            one.name = crate::error::printable(&one.name);
            one.description = one.description.as_deref().map(crate::error::printable);
        }
        Ok(found)
    }
}

/// Registry and term, as in names of images.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            let domain = if first == "index.docker.io" { DEFAULT_DOMAIN } else { first };
            (domain, rest)
        }
        _ => (DEFAULT_DOMAIN, term),
    }
}
