//! What may differ, and why.

use std::cell::Cell;
use std::collections::BTreeMap;

const DIFFERENCES: &str = include_str!("differences.txt");

/// How much of a field may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Its value, not its type, nor whether it is empty.
    Value,
    /// All of it.
    Whole,
    /// The status of the answer: the first is Docker's.
    Status(u16, u16),
}

/// `varies`, `differs` or `status 500 400` (with a `?` behind the word if that is not always so), then the request,
/// then the field by its last names; `*` is anything.
#[derive(Debug)]
struct Line {
    text: &'static str,
    scope: Scope,
    request: &'static str,
    field: &'static str,
    /// Whether it is there for something that is not always so.
    sometimes: bool,
    used: Cell<bool>,
}

impl Line {
    fn parse(text: &'static str) -> Self {
        let (what, reason) = text.split_once(" -- ").unwrap_or_else(|| panic!("no reason: {text}"));
        assert!(!reason.is_empty(), "{text}");
        let (kind, rest) = what.trim().split_once(' ').unwrap();
        let sometimes = kind.ends_with('?');
        let (scope, rest) = match kind.trim_end_matches('?') {
            "varies" => (Scope::Value, rest),
            "differs" => (Scope::Whole, rest),
            "status" => {
                let (theirs, rest) = rest.split_once(' ').unwrap();
                let (ours, rest) = rest.split_once(' ').unwrap();
                (Scope::Status(theirs.parse().unwrap(), ours.parse().unwrap()), rest)
            }
            _ => panic!("{text}"),
        };
        let (request, field) = match rest.rsplit_once(": ") {
            Some((request, field)) => (request, field),
            None if matches!(scope, Scope::Status(..)) => (rest, ""),
            None => ("*", rest),
        };
        Self { text, scope, request, field, sometimes, used: Cell::new(false) }
    }

    fn is_about(&self, request: &str, field: &str) -> bool {
        let wanted: Vec<&str> = self.field.split('/').rev().collect();
        let names: Vec<&str> = field.split('/').rev().collect();
        matches(self.request, request)
            && wanted.len() <= names.len()
            && wanted.iter().zip(names).all(|(wanted, name)| matches(wanted, name))
    }
}

/// `*` in a pattern is any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((begin, rest)) => text.strip_prefix(begin).is_some_and(|left| {
            let mut ends = (0..=left.len()).filter(|at| left.is_char_boundary(*at));
            ends.any(|at| matches(rest, &left[at..]))
        }),
    }
}

/// The list, and what was found that is not in it.
#[derive(Debug)]
pub(super) struct Accepted {
    lines: Vec<Line>,
    /// Whether what is asked is of the newest version that both speak.
    pub(super) newest: bool,
    found: BTreeMap<String, String>,
}

impl Accepted {
    pub(super) fn read() -> Self {
        let lines = DIFFERENCES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { lines: lines.map(Line::parse).collect(), newest: true, found: BTreeMap::new() }
    }

    /// A difference of a field.
    pub(super) fn field(&mut self, request: &str, field: &str, only_value: bool, what: String) {
        let line = self.lines.iter().find(|line| {
            (line.scope == Scope::Whole || only_value && line.scope == Scope::Value)
                && line.is_about(request, field)
        });
        match line {
            Some(line) => line.used.set(true),
            None => drop(self.found.insert(format!("{request}: {field}"), what)),
        }
    }

    /// Other statuses; whether they are accepted.
    pub(super) fn status(&mut self, request: &str, theirs: u16, ours: u16, what: String) {
        let line = self
            .lines
            .iter()
            .find(|line| line.scope == Scope::Status(theirs, ours) && matches(line.request, request));
        match line {
            Some(line) => line.used.set(true),
            None => drop(self.found.insert(format!("{request}: status"), what)),
        }
    }

    pub(super) fn finish(self) {
        let idle: Vec<&str> = self
            .lines
            .iter()
            .filter(|line| !line.used.get() && !line.sometimes)
            .map(|line| line.text)
            .collect();
        let found: Vec<String> = self.found.iter().map(|(at, what)| format!("{at}   {what}")).collect();
        assert!(
            found.is_empty() && idle.is_empty(),
            "{} differences, Docker's first:\n{}\nnot needed:\n{}",
            found.len(),
            found.join("\n"),
            idle.join("\n")
        );
    }
}

#[test]
fn patterns_are_of_whole_texts() {
    for (pattern, text, meets) in [
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*d", "abc", false),
        ("ab", "abc", false),
        ("*", "", true),
    ] {
        assert_eq!(matches(pattern, text), meets, "{pattern} {text}");
    }
    let line = Line::parse("varies GET /x*: Log/*/End -- time");
    assert!(line.is_about("GET /x/json", "State/Health/Log/0/End") && !line.is_about("GET /y", "Log/0/End"));
    assert!(!line.is_about("GET /x", "End"));
}
