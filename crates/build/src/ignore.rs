//! `.dockerignore`: which files of a context are none.
//!
//! A line is a pattern of Go's `filepath.Match` with `**` for any number of folders; the last one that is
//! like a path, or like a folder above it, decides, and `!` takes back.

use crate::{Error, Result};

/// Bytes of the file, and patterns in it.
const LARGEST: usize = 1 << 20;
const PATTERNS_MAX: usize = 4096;

/// The patterns of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// `!`
    keeps: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`
    Folders,
    Name(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Many,
    One,
    Sign(char),
    /// `[a-z]`, `[^a-z]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Ignore {
    /// Reads a `.dockerignore`.
    ///
    /// # Errors
    /// [`Error::Ignore`] with the line of a pattern that is none.
    pub fn parse(text: &[u8]) -> Result<Self> {
        if text.len() > LARGEST {
            return Err(Error::Ignore { line: 1, why: format!("the file is larger than {LARGEST} bytes") });
        }
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with('#'));
        Self::of(lines)
    }

    /// Patterns one by one, as in `--exclude`.
    ///
    /// # Errors
    /// As [`Ignore::parse`], the line being the pattern's number.
    pub fn patterns<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Self::of(patterns.into_iter().zip(1..))
    }

    fn of<'a>(lines: impl Iterator<Item = (&'a str, u32)>) -> Result<Self> {
        let mut patterns = Vec::new();
        for (line, number) in lines {
            let fail = |why: &str| Error::Ignore { line: number, why: format!("{line:?}: {why}") };
            let trimmed = line.trim();
            if trimmed.is_empty() {
                continue;
            }
            let (keeps, text) = match trimmed.strip_prefix('!') {
                Some("") => return Err(fail("illegal exclusion pattern")),
                Some(rest) => (true, rest.trim()),
                None => (false, trimmed),
            };
            if patterns.len() == PATTERNS_MAX {
                return Err(fail("there are too many patterns"));
            }
            let parts = clean(text).map(part).collect::<Option<Vec<_>>>();
            let parts = parts.ok_or_else(|| fail("syntax error in pattern"))?;
            // The context itself is never left out.
            if !parts.is_empty() {
                patterns.push(Pattern { keeps, parts });
            }
        }
        Ok(Self { patterns })
    }

    /// These patterns, and others after them.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.patterns.extend(others.patterns);
        self
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the file or folder at this path, relative to the context, is left out.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        let decides = self.patterns.iter().rfind(|pattern| pattern.is_like_any_of(&names));
        decides.is_some_and(|pattern| !pattern.keeps)
    }

    /// Whether something in an ignored folder may be kept all the same.
    #[must_use]
    pub fn may_keep_below(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        self.patterns.iter().any(|pattern| pattern.keeps && pattern.may_be_below(&names))
    }
}

/// The names of a path, with `.` and `..` taken out.
fn clean(text: &str) -> impl Iterator<Item = &str> {
    let mut names: Vec<&str> = Vec::new();
    for name in text.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    names.into_iter()
}

fn part(name: &str) -> Option<Part> {
    if name == "**" {
        return Some(Part::Folders);
    }
    let mut tokens = Vec::new();
    let mut signs = name.chars().peekable();
    while let Some(sign) = signs.next() {
        tokens.push(match sign {
            '*' => {
                while signs.next_if_eq(&'*').is_some() {}
                Token::Many
            }
            '?' => Token::One,
            '\\' => Token::Sign(signs.next()?),
            '[' => class(&mut signs)?,
            _ => Token::Sign(sign),
        });
    }
    Some(Part::Name(tokens))
}

fn class(signs: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = signs.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let mut one = || match signs.next()? {
            '\\' => signs.next().map(|sign| (sign, true)),
            sign => Some((sign, false)),
        };
        let (low, escaped) = one()?;
        if low == ']' && !escaped && !ranges.is_empty() {
            return Some(Token::Class { negated, ranges });
        }
        if matches!(low, ']' | '-') && !escaped {
            return None;
        }
        let high = if signs.next_if_eq(&'-').is_some() {
            match signs.next()? {
                '\\' => signs.next()?,
                ']' | '-' => return None,
                sign => sign,
            }
        } else {
            low
        };
        ranges.push((low, high));
    }
}

impl Pattern {
    /// Whether it is like the path or a folder above it.
    fn is_like_any_of(&self, names: &[&str]) -> bool {
        let reached = self.walk(names);
        // State 0 of no names is not a path.
        reached.iter().skip(1).any(|states| states[self.parts.len()])
    }

    /// Whether something below the folder may be like it.
    fn may_be_below(&self, names: &[&str]) -> bool {
        self.walk(names).last().is_some_and(|states| states[..self.parts.len()].contains(&true))
    }

    /// Which parts may come next after none, one, … of the names.
    fn walk(&self, names: &[&str]) -> Vec<Vec<bool>> {
        let mut states = vec![false; self.parts.len() + 1];
        states[0] = true;
        self.skip_folders(&mut states);
        let mut all = vec![states];
        for name in names {
            let Some(before) = all.last() else { break };
            let mut next = vec![false; self.parts.len() + 1];
            for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| before[*at]) {
                match part {
                    Part::Folders => {
                        next[at] = true;
                        // At the end it is everything below.
                        next[at + 1] |= at + 1 == self.parts.len();
                    }
                    Part::Name(tokens) => next[at + 1] |= is_like(tokens, name),
                }
            }
            self.skip_folders(&mut next);
            all.push(next);
        }
        all
    }

    /// `**` in front of something stands for no folder too.
    fn skip_folders(&self, states: &mut [bool]) {
        for (at, part) in self.parts.iter().enumerate() {
            if states[at] && *part == Part::Folders && at + 1 < self.parts.len() {
                states[at + 1] = true;
            }
        }
    }
}

/// Whether one name is like a pattern for names, as Go's `path/filepath.Match` has it.
#[must_use]
pub fn name_is_like(pattern: &str, name: &str) -> Option<bool> {
    match part(pattern)? {
        Part::Folders => Some(true),
        Part::Name(tokens) => Some(is_like(&tokens, name)),
    }
}

fn is_like(tokens: &[Token], name: &str) -> bool {
    let text: Vec<char> = name.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        let fits = match tokens.get(p) {
            Some(Token::Many) => {
                back = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(Token::One) => true,
            Some(Token::Sign(sign)) => *sign == text[t],
            Some(Token::Class { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&text[t])) != *negated
            }
            None => false,
        };
        match back {
            _ if fits => (p, t) = (p + 1, t + 1),
            Some((pattern_at, text_at)) => {
                (p, t) = (pattern_at, text_at + 1);
                back = Some((pattern_at, text_at + 1));
            }
            None => return false,
        }
    }
    tokens[p..].iter().all(|token| *token == Token::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(file: &str, paths: &[&str]) -> Vec<bool> {
        let ignore = Ignore::parse(file.as_bytes()).unwrap();
        paths.iter().map(|path| ignore.ignores(path)).collect()
    }

    #[test]
    fn rules_are_docker_s() {
        assert_eq!(
            ignored("# note\n*/temp*\n", &["a/temp", "a/temp.txt/b", "temp", "a/b/temp"]),
            [true, true, false, false]
        );
        assert_eq!(ignored("**/*.go\n", &["x.go", "a/b/x.go", "x.gone"]), [true, true, false]);
        assert_eq!(ignored("/a/../b/./c\n", &["b/c", "a/c", "b"]), [true, false, false]);
        assert_eq!(
            ignored("*.md\n!README*.md\nREADME-secret.md\n", &["x.md", "README.md", "README-secret.md"]),
            [true, false, true]
        );
        assert_eq!(ignored("node_modules\n", &["node_modules/a/b", "x/node_modules"]), [true, false]);
        assert_eq!(ignored("*\n!src\n", &["a", "src", "src/main.c"]), [true, false, false]);
        assert_eq!(ignored("a/**\n", &["a", "a/b", "a/b/c"]), [false, true, true]);
        assert_eq!(ignored("a/**/z\n", &["a/z", "a/b/z", "a/b/c/z", "z"]), [true, true, true, false]);
        assert_eq!(
            ignored("[a-c]?.txt\n[^x]\n", &["b1.txt", "d1.txt", "y", "x"]),
            [true, false, true, false]
        );
        assert_eq!(ignored(".\n\\#a\n", &["x", "#a"]), [false, true]);
    }

    #[test]
    fn what_is_no_pattern() {
        for bad in ["!", "[", "[a", "[]a]", "a\\", "[a-]"] {
            assert!(
                Ignore::parse(format!("ok\n{bad}").as_bytes())
                    .is_err_and(|e| matches!(e, Error::Ignore { line: 2, .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn below_an_ignored_folder_something_may_be_kept() {
        let ignore = Ignore::parse(b"a\n!a/b/c\nx\n").unwrap();
        assert!(ignore.ignores("a/z") && !ignore.ignores("a/b/c"));
        assert!(ignore.may_keep_below("a") && ignore.may_keep_below("a/b"));
        assert!(!ignore.may_keep_below("x") && !ignore.may_keep_below("a/y"));
    }
}
