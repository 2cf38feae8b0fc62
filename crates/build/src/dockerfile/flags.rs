//! Flags between an instruction's name and its arguments: `--name=value`, `--name`.

use crate::nearest::hint;
use crate::{Error, Result};

/// The flags of one instruction.
#[derive(Debug, Default)]
pub(super) struct Flags {
    keyword: &'static str,
    line: u32,
    found: Vec<(String, Option<String>)>,
}

impl Flags {
    /// Takes the flags off; what is left are the arguments.
    pub(super) fn take<'a>(
        keyword: &'static str,
        line: u32,
        text: &'a str,
        escape: char,
        known: &[&str],
    ) -> Result<(Self, &'a str)> {
        let mut flags = Self { keyword, line, found: Vec::new() };
        let mut rest = text.trim_start();
        while rest.starts_with("--") {
            let end = end_of_word(rest, escape);
            let word = &rest[..end];
            rest = rest[end..].trim_start();
            if word == "--" {
                break;
            }
            let plain = word[2..].to_owned();
            let (name, value) = match plain.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (plain, None),
            };
            if !known.contains(&name.as_str()) {
                let hint = hint(&name, known.iter().copied());
                let hint = hint.replace("mean ", "mean --");
                return Err(Error::at(line, format!("{keyword}: unknown flag: --{name}{hint}")));
            }
            flags.found.push((name, value));
        }
        Ok((flags, rest))
    }

    /// The value of a flag that may come once.
    pub(super) fn value(&self, name: &str) -> Result<Option<String>> {
        let values = self.values(name)?;
        match values.len() {
            0 | 1 => Ok(values.into_iter().next()),
            _ => Err(self.wrong(name, "can be given once only")),
        }
    }

    /// Every value of a flag.
    pub(super) fn values(&self, name: &str) -> Result<Vec<String>> {
        let with = self.found.iter().filter(|(found, _)| found == name);
        with.map(|(_, value)| match value {
            Some(value) if !value.is_empty() => Ok(value.clone()),
            _ => Err(self.wrong(name, "needs a value")),
        })
        .collect()
    }

    /// Whether a switch is on; `None` if it is not given.
    pub(super) fn switch(&self, name: &str) -> Result<Option<bool>> {
        match self.found.iter().rfind(|(found, _)| found == name) {
            None => Ok(None),
            Some((_, value)) => match value.as_deref().map(str::to_ascii_lowercase).as_deref() {
                None | Some("true" | "1" | "t") => Ok(Some(true)),
                Some("false" | "0" | "f") => Ok(Some(false)),
                Some(other) => Err(self.wrong(name, &format!("is true or false, not {other:?}"))),
            },
        }
    }

    pub(super) fn wrong(&self, name: &str, why: &str) -> Error {
        Error::at(self.line, format!("{}: --{name} {why}", self.keyword))
    }
}

/// Where a word ends: at white space that is neither quoted nor escaped.
fn end_of_word(text: &str, escape: char) -> usize {
    let mut quote: Option<char> = None;
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match quote {
            Some(open) if sign == open => quote = None,
            Some(_) => {}
            None if sign == escape => {
                signs.next();
            }
            None if matches!(sign, '"' | '\'') => quote = Some(sign),
            None if sign.is_whitespace() => return at,
            None => {}
        }
    }
    text.len()
}
