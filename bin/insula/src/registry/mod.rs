//! Registries, seen from the command line: whose credentials go along, and what a transfer shows.

pub(crate) mod config;
mod helper;
pub(crate) mod progress;

use std::collections::BTreeMap;

use insula_models::AuthConfig;
use insula_spec::reference::{DEFAULT_DOMAIN, Reference};

use self::config::Config;
use crate::printer;

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

/// Those of all registries that the configuration names, as the daemon calls them; one whose program fails is left out,
/// and that is said.
pub(crate) fn all_credentials() -> anyhow::Result<BTreeMap<String, AuthConfig>> {
    let config = Config::load()?;
    let mut found = BTreeMap::new();
    for server in config.servers() {
        match config.credentials(&server) {
            Ok(auth) if auth == AuthConfig::default() => {}
            Ok(auth) => {
                let name = if server == HUB { DEFAULT_DOMAIN } else { config::host(&server) };
                // A name counts before an address of the same registry, as for one image.
                if name == server || !found.contains_key(name) {
                    found.insert(name.to_owned(), auth);
                }
            }
            Err(error) => printer::notice(&format!("the credentials for {server} are left out: {error:#}")),
        }
    }
    Ok(found)
}

/// What the configuration calls a registry.
pub(crate) fn server(domain: &str) -> &str {
    if domain == DEFAULT_DOMAIN || domain == "index.docker.io" { HUB } else { domain }
}
