//! Who may ask: users with passwords, of a file as Apache's htpasswd writes it, and of the command line.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::bail;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

/// What a password given on the command line is hashed with; checked once for each client.
const COST: u32 = 10;
/// Credentials that are remembered as right.
const KNOWN_MAX: usize = 1024;
/// Bytes of an `Authorization` header.
const HEADER_MAX: usize = 4096;
/// bcrypt reads no more of a password.
const PASSWORD_MAX: usize = 72;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Users(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    hashes: Vec<(String, String)>,
    known: Known,
}

/// Hashes of headers whose credentials are right: hashing a password anew takes a tenth of a second of a CPU.
#[derive(Debug)]
struct Known {
    salt: String,
    headers: Mutex<HashSet<[u8; 32]>>,
    turn: Semaphore,
}

impl Default for Known {
    fn default() -> Self {
        Self { salt: insula_base::random_hex(32), headers: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Users {
    /// `NAME:HASH` a line; empty lines and those that begin with `#` mean nothing.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut hashes = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, hash)) = line.split_once(':').filter(|(name, _)| !name.is_empty()) else {
                bail!("line {}: NAME:HASH is expected", number + 1);
            };
            if !["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind)) || hash.len() != 60 {
                bail!("line {}: the password of {name} is not hashed with bcrypt (htpasswd -B)", number + 1);
            }
            hashes.push((name.to_owned(), hash.to_owned()));
        }
        Ok(Self(Arc::new(Inner { hashes, known: Known::default() })))
    }

    pub(super) fn add(&mut self, name: &str, password: &str) -> anyhow::Result<()> {
        if name.is_empty() || name.contains(':') {
            bail!("{name:?} cannot be the name of a user");
        }
        if password.len() > PASSWORD_MAX {
            bail!("the password of {name} has more than {PASSWORD_MAX} bytes");
        }
        let hash = bcrypt::hash(password, COST)?;
        let mut hashes: Vec<_> = self.0.hashes.iter().filter(|(other, _)| other != name).cloned().collect();
        hashes.push((name.to_owned(), hash));
        self.0 = Arc::new(Inner { hashes, known: Known::default() });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.hashes.is_empty()
    }

    /// Whether these are the credentials of a user (RFC 7617).
    pub(super) async fn accept(&self, header: Option<&[u8]>) -> bool {
        let Some(header) = header.filter(|header| header.len() <= HEADER_MAX) else { return false };
        let mut hash = Sha256::new();
        hash.update(self.0.known.salt.as_bytes());
        hash.update(header);
        let key: [u8; 32] = hash.finalize().into();
        let known =
            |users: &Inner| users.known.headers.lock().unwrap_or_else(PoisonError::into_inner).contains(&key);
        if known(&self.0) {
            return true;
        }
        let Some((name, password)) = basic(header) else { return false };
        // One at a time: guessing must not take the machine. It is never closed.
        let Ok(_turn) = self.0.known.turn.acquire().await else { return false };
        if known(&self.0) {
            return true;
        }
        let users = self.0.clone();
        let right =
            tokio::task::spawn_blocking(move || users.verify(&name, &password)).await.unwrap_or(false);
        if right {
            let mut headers = self.0.known.headers.lock().unwrap_or_else(PoisonError::into_inner);
            if headers.len() >= KNOWN_MAX {
                headers.clear();
            }
            headers.insert(key);
        }
        right
    }
}

impl Inner {
    fn verify(&self, name: &str, password: &str) -> bool {
        let hash = self.hashes.iter().find(|(known, _)| known == name).map(|(_, hash)| hash);
        // Whoever is not known takes as long as who is.
        let Some(against) = hash.or(self.hashes.first().map(|(_, hash)| hash)) else { return false };
        bcrypt::verify(password, against).unwrap_or(false) && hash.is_some()
    }
}

fn basic(header: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, rest) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let plain = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (name, password) = plain.split_once(':')?;
    (password.len() <= PASSWORD_MAX).then(|| (name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ann` with `secret`.
    const FILE: &str = "# users\n\nann:$2b$04$TyyEsP.hxTISEvvJBXjIVuiY1sLT9vEhsP/Vx8HWgAqir47K7Lvbi\n";

    fn header(credentials: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(credentials)).into_bytes()
    }

    #[tokio::test]
    async fn right_credentials_are_accepted_and_no_others() {
        let mut users = Users::parse(FILE).unwrap();
        users.add("bob", "other secret").unwrap();
        for right in ["ann:secret", "bob:other secret", "ann:secret"] {
            assert!(users.accept(Some(&header(right))).await, "{right}");
        }
        for wrong in ["ann:Secret", "ann:", "bob:secret", "eve:secret", ":", "annsecret"] {
            assert!(!users.accept(Some(&header(wrong))).await, "{wrong}");
        }
        assert!(!users.accept(None).await);
        for wrong in ["Bearer x", "Basic", "Basic !", "Basic \u{e9}"] {
            assert!(!users.accept(Some(wrong.as_bytes())).await, "{wrong}");
        }
    }

    #[test]
    fn files_are_read_or_refused() {
        assert!(!Users::parse(FILE).unwrap().is_empty());
        assert!(Users::parse("# nobody\n").unwrap().is_empty());
        for (text, why) in [("ann\n", "line 1"), ("\nann:{SHA}x=\n", "line 2"), (":$2y$", "line 1")] {
            assert!(Users::parse(text).unwrap_err().to_string().contains(why), "{text}");
        }
        assert!(Users::default().add("a:b", "x").is_err());
        assert!(Users::default().add("a", &"x".repeat(73)).is_err());
    }
}
