//! Whether credentials are good.

use http::header::WWW_AUTHENTICATE;
use http::{Method, StatusCode};
use insula_spec::reference::{DEFAULT_DOMAIN, Reference};

use crate::auth::{Session, challenges};
use crate::http::{Ask, failed, reason};
use crate::repository::join;
use crate::{Credentials, Error, Registries, Result};

/// What a login gave.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// To be used instead of the password from now on, if the registry has such.
    pub identity_token: Option<String>,
}

impl std::fmt::Debug for Login {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("identity_token", &self.identity_token.is_some()).finish()
    }
}

impl Registries {
    /// Tries credentials at a registry, which is `HOST[:PORT]` or an address as Docker's configuration
    /// has it (`https://index.docker.io/v1/`).
    pub async fn login(&self, address: &str, credentials: &Credentials) -> Result<Login> {
        let domain = domain(address)?;
        let endpoint = self.endpoint(&domain)?;
        let url = join(endpoint.base(&self.http).await?, "v2/")?;
        // Certificates may just have been put into place.
        self.http.forget(&url);
        let doing = format!("log in to {domain}");
        let response = self.http.send(Ask::new(Method::GET, url.clone(), &doing)).await?;
        match response.status() {
            StatusCode::OK => return Ok(Login { identity_token: None }),
            StatusCode::UNAUTHORIZED => {}
            _ => return Err(failed(self.options(), &domain, &doing, response).await),
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter().take(8);
        let offered: Vec<_> = headers.filter_map(|value| value.to_str().ok()).flat_map(challenges).collect();
        let mut login = Login { identity_token: None };
        let mut session = Session::new(self.http.clone(), credentials.clone(), Vec::new());
        if let Some(challenge) = offered.iter().find(|challenge| challenge.scheme == "bearer") {
            login.identity_token = session.identity_token(challenge, &url).await?;
            if let Some(token) = &login.identity_token {
                let identity = Credentials::Identity(token.clone());
                session = Session::new(self.http.clone(), identity, Vec::new());
            }
        }
        let response = session.send(Ask::new(Method::GET, url, &doing)).await?;
        match response.status() {
            StatusCode::OK => Ok(login),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let why = reason(self.options(), response).await;
                Err(Error::Unauthorized { host: domain, why })
            }
            _ => Err(failed(self.options(), &domain, &doing, response).await),
        }
    }
}

/// The registry that an address of a login means.
pub(crate) fn domain(address: &str) -> Result<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || host == "index.docker.io" || host == "registry-1.docker.io" {
        return Ok(DEFAULT_DOMAIN.to_owned());
    }
    match Reference::parse(&format!("{host}/x/y")) {
        Ok(reference) if reference.domain() == host => Ok(host.to_owned()),
        // A bare word is a host here, where no repository can be meant.
        _ if Reference::parse(&format!("{host}:1/x")).is_ok_and(|reference| reference.path() == "x") => {
            Ok(host.to_owned())
        }
        _ => Err(Error::Invalid(format!("{address:?} is not the address of a registry"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_configurations_are_registries() {
        for (address, expected) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("", "docker.io"),
            ("docker.io", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://r.example:5000/v2/", "r.example:5000"),
            ("http://r.example", "r.example"),
            ("registry", "registry"),
        ] {
            assert_eq!(domain(address).unwrap(), expected);
        }
        for bad in ["a b", "https://u:p@h", "x\ny"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }
}
