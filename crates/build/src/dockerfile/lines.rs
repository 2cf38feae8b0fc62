//! Lines: directives at the top, comments, continuations, and the bodies of heredocs.

use super::instruction::Heredoc;
use super::words;
use crate::{Error, Result};

/// Bodies that one instruction may have.
const HEREDOCS_MAX: usize = 64;

/// What comments at the top say to the parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// The frontend that the author had in mind; noted, this one is used.
    pub syntax: Option<String>,
    /// What continues a line and takes a character as it is: a backslash or a backquote.
    pub escape: char,
    /// Rules of `--check` that are skipped, and whether one that is broken fails the build.
    pub check: Option<String>,
}

/// An instruction, with its continuations joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The first line of it, from 1.
    pub(super) line: u32,
    /// Without heredocs' bodies.
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// Splits a file into instructions.
pub(super) fn split(text: &str) -> Result<(Directives, Vec<Line>)> {
    let mut source = Source { lines: text.split('\n').collect(), next: 0 };
    if source.lines.last() == Some(&"") {
        source.lines.pop();
    }
    let directives = directives(&source)?;
    let mut lines = Vec::new();
    while let Some((number, first)) = source.take() {
        let trimmed = first.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let text = logical(&mut source, trimmed, directives.escape);
        let text = text.trim().to_owned();
        if text.is_empty() {
            continue;
        }
        let heredocs = heredocs(&mut source, &text, number, directives.escape)?;
        lines.push(Line { line: number, text, heredocs });
    }
    Ok((directives, lines))
}

struct Source<'a> {
    lines: Vec<&'a str>,
    next: usize,
}

impl<'a> Source<'a> {
    /// The next line without its end, and its number.
    fn take(&mut self) -> Option<(u32, &'a str)> {
        let line = self.lines.get(self.next)?;
        self.next += 1;
        Some((u32::try_from(self.next).unwrap_or(u32::MAX), line.strip_suffix('\r').unwrap_or(line)))
    }
}

/// Directives end at the first line that is none.
fn directives(source: &Source<'_>) -> Result<Directives> {
    let mut found = Directives { syntax: None, escape: '\\', check: None };
    let mut escape = None;
    for (number, line) in (1..).zip(&source.lines) {
        let Some((name, value)) = directive(line) else { break };
        let twice = |taken: bool| match taken {
            true => Err(Error::at(number, format!("only one {name} parser directive can be used"))),
            false => Ok(()),
        };
        match name.as_str() {
            "syntax" => {
                twice(found.syntax.is_some())?;
                found.syntax = Some(value.to_owned());
            }
            "check" => {
                twice(found.check.is_some())?;
                found.check = Some(value.to_owned());
            }
            "escape" => {
                twice(escape.is_some())?;
                escape = Some(match value {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        return Err(Error::at(
                            number,
                            format!("invalid ESCAPE {other:?}: a backslash or a backquote is expected"),
                        ));
                    }
                });
            }
            // A comment that looks like one.
            _ => break,
        }
    }
    found.escape = escape.unwrap_or(found.escape);
    Ok(found)
}

fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let word = name.starts_with(|sign: char| sign.is_ascii_alphabetic())
        && name.chars().all(|sign| sign.is_ascii_alphanumeric());
    (word && !value.is_empty()).then(|| (name.to_ascii_lowercase(), value))
}

/// Joins what continues: comments and empty lines in between do not count.
fn logical(source: &mut Source<'_>, first: &str, escape: char) -> String {
    let Some(part) = continued(first, escape) else { return first.to_owned() };
    let mut text = part.to_owned();
    while let Some((_, line)) = source.take() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        match continued(line, escape) {
            Some(part) => text.push_str(part),
            None => {
                text.push_str(line);
                break;
            }
        }
    }
    text
}

/// The line without the sign that continues it; a doubled sign does not.
fn continued(line: &str, escape: char) -> Option<&str> {
    let part = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!part.ends_with(escape)).then_some(part)
}

/// Reads the bodies that an instruction announces.
fn heredocs(source: &mut Source<'_>, text: &str, number: u32, escape: char) -> Result<Vec<Heredoc>> {
    let mut bodies = Vec::new();
    for announced in announced(text, escape) {
        if bodies.len() == HEREDOCS_MAX {
            return Err(Error::at(number, format!("more than {HEREDOCS_MAX} heredocs")));
        }
        bodies.push(body(source, announced, number)?);
    }
    Ok(bodies)
}

fn body(source: &mut Source<'_>, mut heredoc: Heredoc, number: u32) -> Result<Heredoc> {
    while let Some((_, line)) = source.take() {
        let line = if heredoc.chomp { line.trim_start_matches('\t') } else { line };
        if line == heredoc.name {
            return Ok(heredoc);
        }
        heredoc.content.push_str(line);
        heredoc.content.push('\n');
    }
    Err(Error::at(number, format!("unterminated heredoc: a line {:?} is missing", heredoc.name)))
}

/// The heredocs of an instruction that may have some, in order.
fn announced(text: &str, escape: char) -> Vec<Heredoc> {
    let (keyword, mut rest) = words::keyword(text);
    let mut keyword = keyword.to_ascii_uppercase();
    if keyword == "ONBUILD" {
        let (inner, after) = words::keyword(rest);
        (keyword, rest) = (inner.to_ascii_uppercase(), after);
    }
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") || words::list(rest).is_some() {
        return Vec::new();
    }
    words::shell_words(rest, escape).iter().filter_map(|word| heredoc(word, escape)).collect()
}

/// `<<EOF`, `<<-"EOF"`, `3<<EOF`.
pub(super) fn heredoc(word: &str, escape: char) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|sign: char| sign.is_ascii_digit());
    let descriptor = &word[..word.len() - rest.len()];
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = words::unquote(rest, escape)?;
    let plain = name == rest;
    (!name.is_empty()).then(|| Heredoc {
        name,
        descriptor: descriptor.parse().unwrap_or(0),
        expand: plain,
        chomp,
        content: String::new(),
    })
}
