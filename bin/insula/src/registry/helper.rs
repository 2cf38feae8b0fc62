//! Docker's credential helpers: programs that keep credentials elsewhere than in a file, and speak
//! JSON on their standard streams.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use insula_models::AuthConfig;
use serde::{Deserialize, Serialize};

/// Bytes that a helper may answer.
const ANSWER_MAX: u64 = 1 << 20;
/// What helpers say when they have none; the words are all that tells it from other failures.
const NOT_FOUND: &str = "credentials not found";
/// The user name that stands for an identity token.
const TOKEN: &str = "<token>";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// `docker-credential-NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Helper(String);

impl Helper {
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(plain) {
            bail!("{name:?} is not the name of a credential helper");
        }
        Ok(Self(format!("docker-credential-{name}")))
    }

    pub(super) fn get(&self, server: &str) -> anyhow::Result<Option<AuthConfig>> {
        let Some(answer) = self.run("get", server.as_bytes())? else { return Ok(None) };
        let entry: Entry =
            serde_json::from_slice(&answer).with_context(|| format!("read what {} says", self.0))?;
        let mut auth = AuthConfig { serveraddress: server.to_owned(), ..AuthConfig::default() };
        if entry.username == TOKEN {
            auth.identitytoken = entry.secret;
        } else {
            (auth.username, auth.password) = (entry.username, entry.secret);
        }
        Ok(Some(auth))
    }

    pub(super) fn store(&self, server: &str, auth: &AuthConfig) -> anyhow::Result<()> {
        let (username, secret) = match auth.identitytoken.as_str() {
            "" => (auth.username.clone(), auth.password.clone()),
            token => (TOKEN.to_owned(), token.to_owned()),
        };
        let entry = Entry { server: server.to_owned(), username, secret };
        self.run("store", &serde_json::to_vec(&entry)?).map(drop)
    }

    pub(super) fn erase(&self, server: &str) -> anyhow::Result<()> {
        self.run("erase", server.as_bytes()).map(drop)
    }

    /// What it answers; `None` if it does not have it.
    fn run(&self, action: &str, input: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        let mut child = Command::new(&self.0)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("execute the credential helper {}", self.0))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read says why by itself.
            let _ = stdin.write_all(input);
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(ANSWER_MAX)
                .read_to_end(&mut answer)
                .with_context(|| format!("read from {}", self.0))?;
        }
        let status = child.wait().with_context(|| format!("wait for {}", self.0))?;
        if status.success() {
            return Ok(Some(answer));
        }
        let said = String::from_utf8_lossy(&answer);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        bail!("{} {action}: {}", self.0, said.trim());
    }
}
