//! Docker's `config.json`: credentials by registry, or the programs that keep them. Everything else
//! in the file stays as it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use insula_base::{Durability, env};
use insula_models::AuthConfig;
use serde_json::{Map, Value, json};

use super::helper::Helper;

const FILE: &str = "config.json";

/// The file's content, and where it is.
#[derive(Debug)]
pub(crate) struct Config {
    /// None: there is no home to have it in.
    path: Option<PathBuf>,
    document: Map<String, Value>,
}

impl Config {
    /// That of the user; an absent one is empty.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let folder = std::env::var_os(env::DOCKER_CONFIG).filter(|folder| !folder.is_empty());
        let folder = match (folder, std::env::var_os(env::HOME)) {
            (Some(folder), _) => PathBuf::from(folder),
            (None, Some(home)) => PathBuf::from(home).join(".docker"),
            (None, None) => return Ok(Self { path: None, document: Map::new() }),
        };
        Self::read(folder.join(FILE))
    }

    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let document = match fs::read(&path) {
            Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            // Somebody else's home: who may not look in has no credentials there.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Map::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path: Some(path), document })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> String {
        self.path.as_ref().map_or_else(|| FILE.to_owned(), |path| path.display().to_string())
    }

    /// The credentials for a registry, empty if there are none.
    pub(crate) fn credentials(&self, server: &str) -> anyhow::Result<AuthConfig> {
        if let Some(helper) = self.helper(server)? {
            return Ok(helper.get(server)?.unwrap_or_default());
        }
        let Some(entry) = self.entry(server) else { return Ok(AuthConfig::default()) };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut auth = AuthConfig {
            username: text("username"),
            password: text("password"),
            identitytoken: text("identitytoken"),
            registrytoken: text("registrytoken"),
            serveraddress: server.to_owned(),
            ..AuthConfig::default()
        };
        let encoded = text("auth");
        if !encoded.is_empty() {
            let wrong = || format!("the entry of {server} in {}", self.path());
            let decoded =
                String::from_utf8(STANDARD.decode(&encoded).with_context(wrong)?).with_context(wrong)?;
            let Some((user, password)) = decoded.split_once(':') else {
                bail!("{}: auth is not user:password in Base64", wrong());
            };
            auth.username = user.to_owned();
            auth.password = password.trim_end_matches('\0').to_owned();
        }
        Ok(auth)
    }

    /// Every registry that the file names; programs list theirs in it too.
    pub(crate) fn servers(&self) -> BTreeSet<String> {
        let named =
            |of: &str| self.document.get(of).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        named("auths").chain(named("credHelpers")).cloned().collect()
    }

    /// Whether credentials of the registry are kept by a program rather than in the file.
    pub(crate) fn has_helper(&self, server: &str) -> anyhow::Result<bool> {
        Ok(self.helper(server)?.is_some())
    }

    /// Keeps credentials.
    pub(crate) fn store(&mut self, server: &str, auth: &AuthConfig) -> anyhow::Result<()> {
        let entry = match self.helper(server)? {
            Some(helper) => {
                helper.store(server, auth)?;
                // Docker lists the registry in the file all the same.
                json!({})
            }
            None if auth.identitytoken.is_empty() => {
                json!({"auth": STANDARD.encode(format!("{}:{}", auth.username, auth.password))})
            }
            None => json!({
                "auth": STANDARD.encode(format!("{}:", auth.username)),
                "identitytoken": auth.identitytoken,
            }),
        };
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            bail!("auths in {} is not an object", self.path());
        };
        auths.insert(server.to_owned(), entry);
        self.write()
    }

    /// Forgets credentials; whether there were any.
    pub(crate) fn erase(&mut self, server: &str) -> anyhow::Result<bool> {
        let helper = self.helper(server)?;
        let known = match &helper {
            Some(helper) => helper.get(server)?.is_some() || self.key(server).is_some(),
            None => self.key(server).is_some(),
        };
        if let Some(helper) = &helper {
            helper.erase(server)?;
        }
        if let (Some(key), Some(auths)) =
            (self.key(server), self.document.get_mut("auths").and_then(Value::as_object_mut))
        {
            auths.remove(&key);
            self.write()?;
        }
        Ok(known)
    }

    fn helper(&self, server: &str) -> anyhow::Result<Option<Helper>> {
        let of_server = self.document.get("credHelpers").and_then(|helpers| helpers.get(server));
        let name = of_server.or_else(|| self.document.get("credsStore")).and_then(Value::as_str);
        name.filter(|name| !name.is_empty()).map(Helper::new).transpose()
    }

    fn entry(&self, server: &str) -> Option<&Value> {
        self.document.get("auths")?.get(self.key(server)?)
    }

    /// The key of a registry: itself, or an address on its host, as old files have it.
    fn key(&self, server: &str) -> Option<String> {
        let auths = self.document.get("auths")?.as_object()?;
        if auths.contains_key(server) {
            return Some(server.to_owned());
        }
        auths.keys().find(|key| host(key) == host(server)).cloned()
    }

    /// Only its owner may read it: who has a link in its place keeps the link.
    fn write(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else {
            bail!("neither {} nor {} is set: credentials cannot be kept", env::DOCKER_CONFIG, env::HOME);
        };
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        let doing = || format!("write {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(doing)?;
        }
        let mut bytes = Vec::new();
        let layout = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut writer = serde_json::Serializer::with_formatter(&mut bytes, layout);
        serde::Serialize::serialize(&self.document, &mut writer)?;
        insula_base::replace(&path, &bytes, 0o600, Durability::Machine).with_context(doing)
    }
}

pub(super) fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join(FILE);
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::write(&path, text).unwrap();
        let config = Config::read(path).unwrap();
        (folder, config)
    }

    #[test]
    fn entries_of_every_age_are_found() {
        let auth = STANDARD.encode("ann:a:b");
        let (_folder, config) = config(&format!(
            r#"{{"auths": {{"https://old.test/v1/": {{"auth": "{auth}"}}, "r.test:5000": {{"identitytoken": "t"}},
            "https://index.docker.io/v1/": {{"username": "x", "password": "y"}}}}}}"#
        ));
        let old = config.credentials("old.test").unwrap();
        assert_eq!((old.username.as_str(), old.password.as_str()), ("ann", "a:b"));
        assert_eq!(config.credentials("r.test:5000").unwrap().identitytoken, "t");
        assert_eq!(config.credentials(crate::registry::HUB).unwrap().username, "x");
        assert_eq!(config.credentials("other.test").unwrap(), AuthConfig::default());
    }

    #[test]
    fn what_is_stored_is_read_again_and_the_rest_stays() {
        use std::os::unix::fs::PermissionsExt as _;

        let (_folder, mut config) = config(r#"{"detachKeys": "ctrl-x", "auths": {"a.test": {}}}"#);
        let auth = AuthConfig { username: "ann".into(), password: "p".into(), ..AuthConfig::default() };
        config.store("r.test", &auth).unwrap();
        let again = Config::read(config.path.clone().unwrap()).unwrap();
        assert_eq!(again.credentials("r.test").unwrap().password, "p");
        assert_eq!(again.document["detachKeys"], "ctrl-x");
        assert_eq!(fs::metadata(config.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(config.erase("r.test").unwrap());
        assert!(!config.erase("r.test").unwrap());
        let again = Config::read(config.path.clone().unwrap()).unwrap();
        assert!(again.document["auths"].get("a.test").is_some());
        assert_eq!(again.credentials("r.test").unwrap(), AuthConfig::default());
    }

    #[test]
    fn broken_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, "{").unwrap();
        assert!(Config::read(path).unwrap_err().to_string().contains(FILE));
        let (_folder, config) = config(r#"{"credsStore": "../evil"}"#);
        assert!(config.credentials("x").is_err());
    }
}
