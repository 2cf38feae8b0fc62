//! `--attest`, `--provenance`, `--sbom`: what is said about the image.

use anyhow::{Context as _, bail};
use insula_models::BuildAttestations;

/// What all three flags say together; the short ones have the last word. Nothing is said unless asked for.
pub(super) fn read(
    attest: &[String],
    provenance: Option<&str>,
    sbom: Option<&str>,
) -> anyhow::Result<Option<BuildAttestations>> {
    let mut asked = BuildAttestations::default();
    for text in attest {
        let flag = format!("--attest {text}");
        let mut fields = fields(&flag, text)?;
        let Some(at) = fields.iter().position(|(key, _)| key == "type") else {
            bail!("{flag}: type is required");
        };
        match fields.remove(at).1.as_str() {
            "provenance" => asked_provenance(&flag, &fields, &mut asked)?,
            "sbom" => asked_sbom(&flag, &fields, &mut asked)?,
            other => bail!("{flag}: there is no attestation {other:?}: provenance or sbom is expected"),
        }
    }
    if let Some(text) = provenance {
        let flag = format!("--provenance {text}");
        match switch(text) {
            Some(on) => asked.provenance = if on { MIN.to_owned() } else { String::new() },
            None => asked_provenance(&flag, &fields(&flag, text)?, &mut asked)?,
        }
    }
    if let Some(text) = sbom {
        let flag = format!("--sbom {text}");
        match switch(text) {
            Some(on) => asked.sbom = on,
            None => asked_sbom(&flag, &fields(&flag, text)?, &mut asked)?,
        }
    }
    Ok((!asked.provenance.is_empty() || asked.sbom).then_some(asked))
}

const MIN: &str = "min";

fn fields(flag: &str, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let fields = text.split(',').map(|field| {
        let (key, value) = field
            .split_once('=')
            .with_context(|| format!("invalid field {field:?} of {flag}: KEY=VALUE is expected"))?;
        Ok((key.trim().to_ascii_lowercase(), value.to_owned()))
    });
    fields.collect()
}

fn asked_provenance(
    flag: &str,
    fields: &[(String, String)],
    asked: &mut BuildAttestations,
) -> anyhow::Result<()> {
    MIN.clone_into(&mut asked.provenance);
    let mut on = true;
    for (key, value) in fields {
        match (key.as_str(), value.as_str()) {
            ("mode", "min" | "max") => asked.provenance.clone_from(value),
            ("mode", _) => bail!("{flag}: mode is min or max"),
            ("version", "v1") => {}
            ("version", _) => bail!("{flag}: provenance is of version v1 here"),
            ("builder-id", id) => id.clone_into(&mut asked.builder),
            ("disabled", value) => on = !disabled(flag, value)?,
            (key, _) => bail!(
                "{flag}: {key} is not supported in this version: mode, builder-id, version and disabled are expected"
            ),
        }
    }
    if !on {
        asked.provenance.clear();
    }
    Ok(())
}

fn asked_sbom(flag: &str, fields: &[(String, String)], asked: &mut BuildAttestations) -> anyhow::Result<()> {
    asked.sbom = true;
    for (key, value) in fields {
        match key.as_str() {
            "disabled" => asked.sbom = !disabled(flag, value)?,
            "generator" => bail!("{flag}: the daemon itself looks for packages: there is no other generator"),
            key => bail!("{flag}: {key} is not supported in this version: disabled is expected"),
        }
    }
    Ok(())
}

fn disabled(flag: &str, value: &str) -> anyhow::Result<bool> {
    switch(value).with_context(|| format!("{flag}: disabled={value} is neither true nor false"))
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(provenance: &str, builder: &str, sbom: bool) -> Option<BuildAttestations> {
        Some(BuildAttestations { provenance: provenance.to_owned(), builder: builder.to_owned(), sbom })
    }

    #[test]
    fn attestations_are_asked_for() {
        let read = |attest: &[&str], provenance, sbom| {
            let attest: Vec<_> = attest.iter().map(|text| (*text).to_owned()).collect();
            read(&attest, provenance, sbom)
        };
        assert_eq!(read(&[], None, None).unwrap(), None);
        assert_eq!(read(&[], Some("true"), Some("true")).unwrap(), asked("min", "", true));
        assert_eq!(read(&[], Some("mode=max,builder-id=x"), None).unwrap(), asked("max", "x", false));
        assert_eq!(
            read(&["type=sbom", "type=provenance,mode=max"], None, None).unwrap(),
            asked("max", "", true)
        );
        assert_eq!(read(&["type=sbom"], None, Some("false")).unwrap(), None);
        assert_eq!(read(&["type=provenance,disabled=true"], None, None).unwrap(), None);
        for wrong in ["type=x", "mode=max", "type=sbom,generator=a/b", "type=provenance,mode=all", "sbom"] {
            assert!(read(&[wrong], None, None).is_err(), "{wrong}");
        }
        assert!(read(&[], Some("version=v0.2"), None).is_err());
        assert!(read(&[], None, Some("maybe")).is_err());
    }
}
