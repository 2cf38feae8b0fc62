//! Credentials as clients of the API send them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::{Error, Result};

/// Bytes of a header with credentials.
const HEADER_MAX: usize = 64 << 10;

/// What a registry, or its token server, is told of us.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// What an earlier login gave (OAuth 2's refresh token).
    Identity(String),
    /// A bearer token to be used as it is.
    Registry(String),
}

impl std::fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Registry(_) => "Registry(…)",
        })
    }
}

/// Docker's `AuthConfig`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    username: Option<String>,
    password: Option<String>,
    /// `user:password` in Base64.
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Credentials {
    /// Those of `X-Registry-Auth`: JSON in Base64, of either alphabet, with padding or without. Docker's
    /// client sends `{}` when it has none.
    pub fn from_header(header: &str) -> Result<Self> {
        let wrong = |why: &str| Error::Invalid(format!("X-Registry-Auth: {why}"));
        if header.is_empty() {
            return Ok(Self::Anonymous);
        }
        if header.len() > HEADER_MAX {
            return Err(wrong("too long"));
        }
        let bytes = decoded(header).ok_or_else(|| wrong("it is not Base64"))?;
        Self::from_json(&bytes).map_err(|why| wrong(&why))
    }

    /// Those of `X-Registry-Config`: by names of registries, in the same form. Docker's client sends what it
    /// has for all of them.
    pub fn map_from_header(header: &str) -> Result<std::collections::BTreeMap<String, Self>> {
        let wrong = |why: &str| Error::Invalid(why.to_owned());
        if header.len() > HEADER_MAX {
            return Err(wrong("too long"));
        }
        let bytes = decoded(header).ok_or_else(|| wrong("it is not Base64"))?;
        let documents: Option<std::collections::BTreeMap<String, Document>> = serde_json::from_slice(&bytes)
            .map_err(|_| wrong("it is not a JSON object of credentials by registries"))?;
        let documents = documents.unwrap_or_default().into_iter();
        documents
            .map(|(name, document)| Ok((name, document.credentials().map_err(|why| wrong(&why))?)))
            .collect()
    }

    /// Those of a JSON document. The reason of a failure says nothing of its content.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let document: Option<Document> =
            serde_json::from_slice(bytes).map_err(|_| "it is not a JSON object of credentials".to_owned())?;
        document.unwrap_or_default().credentials()
    }

    /// A login by name and password; without both it is anonymous.
    #[must_use]
    pub fn basic(user: &str, password: &str) -> Self {
        if user.is_empty() && password.is_empty() {
            return Self::Anonymous;
        }
        Self::Basic { user: user.to_owned(), password: password.to_owned() }
    }
}

impl Document {
    fn credentials(self) -> Result<Credentials, String> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = given(self.registrytoken) {
            return Ok(Credentials::Registry(token));
        }
        if let Some(token) = given(self.identitytoken) {
            return Ok(Credentials::Identity(token));
        }
        if let (Some(user), password) = (given(self.username), self.password.unwrap_or_default()) {
            return Ok(Credentials::Basic { user, password });
        }
        let Some(auth) = given(self.auth) else { return Ok(Credentials::Anonymous) };
        let text = decoded(&auth).and_then(|bytes| String::from_utf8(bytes).ok());
        match text.as_deref().and_then(|text| text.split_once(':')) {
            // Old files end it with zeros.
            Some((user, password)) => Ok(Credentials::basic(user, password.trim_end_matches('\0'))),
            None => Err("auth is not user:password in Base64".to_owned()),
        }
    }
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    [URL_SAFE, URL_SAFE_NO_PAD, STANDARD, STANDARD_NO_PAD].iter().find_map(|kind| kind.decode(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_all_clients_are_read() {
        let basic = Credentials::Basic { user: "ann".to_owned(), password: "s?>c~ret".to_owned() };
        let json = r#"{"username":"ann","password":"s?>c~ret","email":"","serveraddress":"x:1"}"#;
        for engine in [URL_SAFE, URL_SAFE_NO_PAD, STANDARD] {
            assert_eq!(Credentials::from_header(&engine.encode(json)).unwrap(), basic);
        }
        let auth = format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("ann:s?>c~ret"));
        assert_eq!(Credentials::from_header(&URL_SAFE.encode(auth)).unwrap(), basic);
        let token = URL_SAFE.encode(r#"{"identitytoken":"t","username":"","password":null}"#);
        assert_eq!(Credentials::from_header(&token).unwrap(), Credentials::Identity("t".to_owned()));
        for none in ["", &URL_SAFE.encode("{}"), &URL_SAFE.encode("null")] {
            assert_eq!(Credentials::from_header(none).unwrap(), Credentials::Anonymous);
        }
    }

    #[test]
    fn secrets_are_in_no_message() {
        let secret = "verysecret";
        let bad = URL_SAFE.encode(format!(r#"{{"password":{{"x":"{secret}"}}}}"#));
        let error = Credentials::from_header(&bad).unwrap_err();
        assert!(!insula_base::chain(&error).contains(secret));
        assert!(!format!("{:?}", Credentials::basic("a", secret)).contains(secret));
        assert!(Credentials::from_header("\u{e9}").is_err());
        assert!(Credentials::from_header(&"a".repeat(HEADER_MAX + 1)).is_err());
    }
}
