//! `--cache-from` and `--cache-to`: what other builds made, and who may have what this one makes.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use insula_build::Ignore;
use insula_spec::reference::Reference;

use crate::copy::context::Context;
use crate::printer;

/// Where records come from.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Images of the daemon's or of registries.
    pub(super) images: Vec<String>,
    /// OCI layouts of this host, by what they are called.
    pub(super) layouts: Vec<(String, Context)>,
}

/// Where records go.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// As the daemon is told.
    pub(super) told: Vec<String>,
    pub(super) folder: Option<PathBuf>,
    /// Names in registries.
    pub(super) names: Vec<String>,
}

/// What a flag says: names of images, or a type and its fields.
fn fields(flag: &str, text: &str) -> anyhow::Result<(String, Vec<(String, String)>)> {
    let mut kind = String::new();
    let mut fields = Vec::new();
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .with_context(|| format!("invalid field {field:?} of {flag} {text}: KEY=VALUE is expected"))?;
        match key.trim().to_ascii_lowercase() {
            key if key == "type" => value.clone_into(&mut kind),
            key => fields.push((key, value.to_owned())),
        }
    }
    Ok((kind, fields))
}

fn one(flag: &str, text: &str, known: &[&str], fields: &[(String, String)]) -> anyhow::Result<Vec<String>> {
    if let Some((key, _)) = fields.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        bail!("{flag} {text}: {key} is not supported in this version: {} is expected", known.join(", "));
    }
    let value =
        |name: &&str| fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    Ok(known.iter().map(|name| value(name).unwrap_or_default()).collect())
}

/// `IMAGE[,IMAGE…]`, `type=registry,ref=IMAGE`, `type=local,src=FOLDER`.
pub(super) fn from(given: &[String]) -> anyhow::Result<Sources> {
    const FLAG: &str = "--cache-from";
    let mut sources = Sources::default();
    for text in given {
        if !text.contains('=') {
            sources.images.extend(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
            continue;
        }
        let (kind, fields) = fields(FLAG, text)?;
        match kind.as_str() {
            "registry" => {
                let name = one(FLAG, text, &["ref"], &fields)?.remove(0);
                Reference::parse(&name).with_context(|| format!("{FLAG} {text}"))?;
                sources.images.push(name);
            }
            "local" => {
                let folder = PathBuf::from(one(FLAG, text, &["src"], &fields)?.remove(0));
                // The first build of all has none yet.
                if !folder.join("index.json").is_file() {
                    printer::notice(&format!("{FLAG} {text}: {} has no index.json yet", folder.display()));
                    continue;
                }
                let folder = folder.canonicalize().with_context(|| format!("{FLAG} {text}"))?;
                let ignore = Ignore::default();
                let context = Context { folder, ignore, always: Vec::new(), extra: None };
                sources.layouts.push((text.clone(), context));
            }
            "" => bail!("{FLAG} {text}: type is required"),
            other => {
                bail!("{FLAG} {text}: the type {other:?} is not supported: registry or local is expected")
            }
        }
    }
    Ok(sources)
}

/// `IMAGE`, `type=inline`, `type=registry,ref=IMAGE[,mode=min|max]`, `type=local,dest=FOLDER[,mode=min|max]`.
pub(super) fn to(given: &[String]) -> anyhow::Result<Targets> {
    const FLAG: &str = "--cache-to";
    let mut targets = Targets::default();
    let scope = |text: &str, mode: &str| match mode {
        "" | "min" => Ok("result"),
        "max" => Ok("all"),
        _ => bail!("{FLAG} {text}: mode={mode} is neither min nor max"),
    };
    for text in given {
        let (kind, fields) = match text.contains('=') {
            true => fields(FLAG, text)?,
            false => ("registry".to_owned(), vec![("ref".to_owned(), text.clone())]),
        };
        match kind.as_str() {
            "inline" => {
                one(FLAG, text, &[], &fields)?;
                targets.told.push("inline".to_owned());
            }
            "registry" => {
                let values = one(FLAG, text, &["ref", "mode"], &fields)?;
                let name = Reference::parse(&values[0]).with_context(|| format!("{FLAG} {text}"))?;
                if name.digest().is_some() {
                    bail!("{FLAG} {text}: a cache is not pushed under a digest");
                }
                targets.told.push(format!("registry:{}:{}", scope(text, &values[1])?, values[0]));
                targets.names.push(values[0].clone());
            }
            "local" => {
                let values = one(FLAG, text, &["dest", "mode"], &fields)?;
                if values[0].is_empty() {
                    bail!("{FLAG} {text}: dest is required for type=local");
                }
                if targets.folder.replace(PathBuf::from(&values[0])).is_some() {
                    bail!("{FLAG} {text}: there is another one of type=local");
                }
                targets.told.push(format!("layout:{}", scope(text, &values[1])?));
            }
            "" => bail!("{FLAG} {text}: type is required"),
            other => {
                bail!(
                    "{FLAG} {text}: the type {other:?} is not supported: inline, registry or local is expected"
                )
            }
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn caches_are_told_by_their_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let local = format!("type=local,src={path}");
        assert!(from(&words(&local)).unwrap().layouts.is_empty(), "it is no layout yet");
        std::fs::write(folder.path().join("index.json"), "{}").unwrap();
        let sources = from(&words(&format!("a,b type=registry,ref=c:1 {local}"))).unwrap();
        assert_eq!((sources.images, sources.layouts.len()), (words("a b c:1"), 1));
        for wrong in ["type=gha", "ref=a", "type=registry,ref=", "type=registry,ref=a,x=y", "type=local,sr=x"]
        {
            assert!(from(&words(wrong)).is_err(), "{wrong}");
        }
        let targets =
            to(&words("a type=inline type=registry,ref=b,mode=max type=local,dest=out,mode=min")).unwrap();
        assert_eq!(targets.told, words("registry:result:a inline registry:all:b layout:result"));
        assert_eq!((targets.folder, targets.names), (Some(PathBuf::from("out")), words("a b")));
        for wrong in [
            "type=local",
            "type=local,dest=a type=local,dest=b",
            "type=inline,mode=max",
            "type=registry,ref=a,mode=some",
            "type=s3",
            "dest=a",
            &format!("a@sha256:{}", "0".repeat(64)),
        ] {
            assert!(to(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
