//! `-e`, `--env-file`, `--label`, `--label-file`.

use anyhow::{Context as _, bail};

/// Files first, then flags, as later ones win. A name alone takes its value from this process'
/// environment and is left out if it has none there.
pub(crate) fn environment(files: &[String], flags: &[String]) -> anyhow::Result<Vec<String>> {
    let own = |name: &str| std::env::var(name).ok();
    let mut variables = Vec::new();
    for file in files {
        for line in lines(file)? {
            variables.extend(variable(&line, own).with_context(|| format!("in {file}"))?);
        }
    }
    for flag in flags {
        match flag.split_once('=') {
            Some(("", _)) => bail!("invalid environment variable: {flag}"),
            Some(_) => variables.push(flag.clone()),
            None if flag.is_empty() => bail!("invalid environment variable: {flag:?}"),
            // A name alone removes what the image sets, if this process does not have it.
            None => variables.push(own(flag).map_or_else(|| flag.clone(), |value| format!("{flag}={value}"))),
        }
    }
    Ok(variables)
}

/// Labels: files first, then flags.
pub(crate) fn labels(files: &[String], flags: &[String]) -> anyhow::Result<insula_models::Labels> {
    let mut all = Vec::new();
    for file in files {
        all.extend(lines(file)?);
    }
    all.extend_from_slice(flags);
    if all.iter().any(|label| label.is_empty() || label.starts_with('=')) {
        bail!("a label has no name: NAME=VALUE is expected");
    }
    Ok(super::pairs(&all))
}

/// The lines of a file that hold something and are no comments.
fn lines(file: &str) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("open {file}"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text
        .lines()
        .map(|line| line.trim_start().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect())
}

fn variable(line: &str, own: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<String>> {
    let (name, value) = line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value)));
    if name.is_empty() {
        bail!("no variable name on line {line:?}");
    }
    if name.contains(char::is_whitespace) {
        bail!("variable {name:?} contains whitespaces");
    }
    Ok(match value {
        Some(value) => Some(format!("{name}={value}")),
        None => own(name).map(|value| format!("{name}={value}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn files_then_flags() {
        let file =
            file("# comment\n\nA=1\n  B=two words # not a comment\nINSULA_TEST_UNSET_NAME\nPATH\nE=\n");
        let path = file.path().to_str().unwrap().to_owned();
        let flags = ["A=2".to_owned(), "INSULA_TEST_UNSET_NAME".to_owned()];
        let variables = environment(&[path], &flags).unwrap();
        let own_path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(
            variables,
            ["A=1", "B=two words # not a comment", own_path.as_str(), "E=", "A=2", "INSULA_TEST_UNSET_NAME"]
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for bad in ["=x\n", "A B=1\n"] {
            let file = file(bad);
            let path = file.path().to_str().unwrap().to_owned();
            assert!(
                format!("{:#}", environment(std::slice::from_ref(&path), &[]).unwrap_err()).contains(&path)
            );
        }
        assert!(
            environment(&["/no/such/file".to_owned()], &[])
                .unwrap_err()
                .to_string()
                .contains("/no/such/file")
        );
        assert!(environment(&[], &["=x".to_owned()]).is_err());
        assert!(labels(&[], &["=x".to_owned()]).is_err());
        assert_eq!(labels(&[], &["a".to_owned(), "b=c=d".to_owned()]).unwrap()["b"], "c=d");
    }
}
