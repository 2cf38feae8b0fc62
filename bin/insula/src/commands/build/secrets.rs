//! `--secret`: a file or a variable of whoever builds.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};

/// Bytes of one, as in BuildKit.
const LARGEST: u64 = 500 << 10;

/// `id=ID[,src=FILE|,env=NAME]`: its id, and what is in it. One that says no more is the variable of its name, or
/// the file.
pub(super) fn read(text: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .with_context(|| format!("invalid field {field:?} of --secret {text}: KEY=VALUE is expected"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value, "file" | "env") => kind = Some(value),
            "type" => bail!("unsupported secret type {value:?}: file or env is expected"),
            _ => bail!("unexpected key {key:?} in --secret {text}: id, src, env and type are expected"),
        }
    }
    let id = id.filter(|id| !id.is_empty()).with_context(|| format!("--secret {text} has no id"))?;
    if kind == Some("env") && variable.is_none() {
        variable = file.take();
    }
    if file.is_none() && variable.is_none() {
        match kind != Some("file") && std::env::var_os(id).is_some() {
            true => variable = Some(id),
            false => file = Some(id),
        }
    }
    let bytes = match (variable, file) {
        (Some(name), _) => {
            std::env::var(name).with_context(|| format!("the variable {name} of secret {id}"))?.into_bytes()
        }
        (None, file) => from_file(Path::new(file.unwrap_or(id)), id)?,
    };
    if bytes.len() as u64 > LARGEST {
        bail!("invalid secret {id}: it is larger than {LARGEST} bytes");
    }
    Ok((id.to_owned(), bytes))
}

fn from_file(path: &Path, id: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file =
        std::fs::File::open(path).with_context(|| format!("read {} for secret {id}", path.display()))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_files_or_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "x").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(read(&format!("id=a,src={path}")).unwrap(), ("a".to_owned(), b"x".to_vec()));
        // Every process has a PATH.
        let (id, value) = read("id=PATH").unwrap();
        assert_eq!((id.as_str(), value), ("PATH", std::env::var("PATH").unwrap().into_bytes()));
        assert_eq!(read("id=a,env=PATH").unwrap().1, std::env::var("PATH").unwrap().into_bytes());
        assert_eq!(read("id=a,type=env,src=PATH").unwrap().1, std::env::var("PATH").unwrap().into_bytes());
        for wrong in [
            "",
            "a",
            "src=x",
            "id=",
            "id=a,src=/nosuch/file",
            "id=a,typ=env",
            "id=a,type=x",
            "id=a,env=NO_SUCH_NAME",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
