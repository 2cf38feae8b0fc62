//! The little languages of flags: each module reads one of Docker's syntaxes.

pub(crate) mod devices;
pub(crate) mod env;
pub(crate) mod limits;
pub(crate) mod mounts;
pub(crate) mod networks;
pub(crate) mod ports;

use std::collections::BTreeMap;

use insula_client::Platform;

use crate::usage::bad_flag;

/// `OS/ARCHITECTURE[/VARIANT]`.
pub(crate) fn platform(text: Option<&str>) -> anyhow::Result<Option<Platform>> {
    let Some(text) = text else { return Ok(None) };
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [os, architecture, rest @ ..] if rest.len() < 2 && parts.iter().all(|part| !part.is_empty()) => {
            let variant = rest.first().copied().unwrap_or_default();
            Ok(Some(Platform {
                os: os.to_lowercase(),
                architecture: architecture.to_lowercase(),
                variant: variant.to_lowercase(),
            }))
        }
        _ => Err(bad_flag("--platform", text, "OS/ARCHITECTURE[/VARIANT] is expected")),
    }
}

/// `NAME=VALUE`, or `NAME` with an empty value.
pub(crate) fn pairs(flags: &[String]) -> BTreeMap<String, String> {
    flags
        .iter()
        .map(|flag| match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (flag.clone(), String::new()),
        })
        .collect()
}

/// `NAME=VALUE`, both there.
pub(crate) fn strict_pairs(flag: &str, flags: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    for text in flags {
        if !matches!(text.split_once('='), Some((name, _)) if !name.is_empty()) {
            return Err(bad_flag(&format!("--{flag}"), text, "NAME=VALUE is expected"));
        }
    }
    Ok(pairs(flags))
}

/// Newer versions of the API have no such field, and newer kernels no such limit.
pub(crate) const NO_KERNEL_MEMORY: &str =
    "a limit of the kernel's own memory is not available: --memory counts it";

/// Images are taken as registries and archives have them, which is what `--disable-content-trust` asks for.
pub(crate) fn content_trust(disabled: bool) -> anyhow::Result<()> {
    if disabled {
        return Ok(());
    }
    Err(bad_flag("--disable-content-trust", "false", "content trust is not available in this version"))
}

/// Bytes; the error names the flag.
pub(crate) fn bytes(flag: &str, text: &str) -> anyhow::Result<i64> {
    let wrong = |why: &dyn std::fmt::Display| bad_flag(&format!("--{flag}"), text, why);
    let bytes = insula_base::parse_bytes(text).map_err(|error| wrong(&error))?;
    i64::try_from(bytes).map_err(|_| wrong(&"it is too large"))
}
