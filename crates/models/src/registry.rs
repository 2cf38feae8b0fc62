//! Registries.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::lenient::{document, is_zero, nullable};

/// Credentials for one registry: body of `POST /auth`, and content of the header `X-Registry-Auth`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "lowercase")]
pub struct AuthConfig {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub username: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub password: String,
    /// `username:password` in Base64.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub auth: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub serveraddress: String,
    /// What a login gave to be used in place of the password.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub identitytoken: String,
    /// A bearer token to be sent as it is.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub registrytoken: String,
}

impl fmt::Debug for AuthConfig {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

document! {
    /// Answer of `POST /auth`.
    AuthResponse {
        status: String,
        identity_token: String,
    }
}

document! {
    /// One line of `GET /images/search`.
    SearchResult {
        #[serde(rename = "description")]
        description: String,
        #[serde(rename = "is_official")]
        is_official: bool,
        #[serde(rename = "is_automated")]
        is_automated: bool,
        #[serde(rename = "name")]
        name: String,
        #[serde(rename = "star_count")]
        star_count: i64,
    }
}

document! {
    /// Answer of `GET /distribution/{name}/json`.
    DistributionInspect {
        descriptor: DescriptorSummary,
        platforms: Vec<PlatformSummary>,
    }
}

document! {
    /// An OCI descriptor.
    DescriptorSummary {
        #[serde(rename = "mediaType")]
        media_type: String,
        #[serde(rename = "digest")]
        digest: String,
        #[serde(rename = "size")]
        size: i64,
        #[serde(rename = "platform", skip_serializing_if = "is_zero")]
        platform: Option<PlatformSummary>,
    }
}

document! {
    /// An OCI platform.
    PlatformSummary {
        #[serde(rename = "architecture")]
        architecture: String,
        #[serde(rename = "os")]
        os: String,
        #[serde(rename = "variant", skip_serializing_if = "is_zero")]
        variant: String,
    }
}

document! {
    /// insula's own: one document of the answer of `GET /distribution/{name}/manifest`, which are those
    /// that `manifest inspect` shows: what the name stands for, and in detail the manifests of an index.
    RemoteManifest {
        /// Complete name with digest.
        #[serde(rename = "Ref")]
        reference: String,
        descriptor: DescriptorSummary,
        /// The document's bytes in Base64.
        raw: String,
    }
}

impl RemoteManifest {
    /// The document itself.
    pub fn text(&self) -> Result<String, serde_json::Error> {
        let decoded = STANDARD.decode(&self.raw).map_err(serde::de::Error::custom)?;
        String::from_utf8(decoded).map_err(serde::de::Error::custom)
    }
}
