//! Registries, seen from the command line: whose credentials go along, and what a transfer shows.

pub(crate) mod config;
mod helper;
pub(crate) mod progress;

use insula_models::AuthConfig;
use insula_spec::reference::{DEFAULT_DOMAIN, Reference};

use self::config::Config;

/// What Docker's configuration calls Docker Hub.
pub(crate) const HUB: &str = "https://index.docker.io/v1/";

/// The credentials for the registry of an image, if there are any.
pub(crate) fn credentials(image: &str) -> anyhow::Result<AuthConfig> {
    match Reference::parse(image) {
        Ok(reference) => Config::load()?.credentials(server(reference.domain())),
        // The daemon says what is wrong with the name.
        Err(_) => Ok(AuthConfig::default()),
    }
}

/// What the configuration calls a registry.
pub(crate) fn server(domain: &str) -> &str {
    if domain == DEFAULT_DOMAIN || domain == "index.docker.io" { HUB } else { domain }
}
