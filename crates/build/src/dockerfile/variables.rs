//! Variables: `$NAME`, `${NAME}` and the modifiers of it.
//!
//! | written | means |
//! | --- | --- |
//! | `${A:-w}`, `${A-w}` | `w` if A is unset (or empty, with the colon) |
//! | `${A:+w}`, `${A+w}` | `w` if A is set (and not empty) |
//! | `${A:?w}`, `${A?w}` | an error that says `w` if A is unset (or empty) |
//! | `${A#p}`, `${A##p}` | without the shortest, longest beginning that is like `p` |
//! | `${A%p}`, `${A%%p}` | without the shortest, longest end that is like `p` |
//! | `${A/p/w}`, `${A//p/w}` | with the first, with every longest piece that is like `p` replaced |

use std::collections::BTreeMap;

use super::glob::Search;

/// `${A:-${B:-…}}`.
const DEPTH_MAX: u32 = 32;
/// What a word may grow to.
const EXPANDED_MAX: usize = 1 << 20;

/// What names stand for.
pub type Variables = BTreeMap<String, String>;

/// What becomes of quotes and escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotes {
    /// They are taken off, and single quotes keep what is in them as it is.
    Remove,
    /// They are text like any other, as in a heredoc.
    Keep,
}

/// Replaces variables in one word.
///
/// # Errors
/// What is wrong with the word.
pub fn expand(word: &str, variables: &Variables, escape: char, quotes: Quotes) -> Result<String, String> {
    let mut reading = Reading::new(word, variables, escape, quotes);
    reading.until(None, 0)?;
    Ok(reading.text)
}

/// Replaces variables, and splits at white space that is not quoted: of a variable's value too.
///
/// # Errors
/// What is wrong with the words.
pub fn expand_words(text: &str, variables: &Variables, escape: char) -> Result<Vec<String>, String> {
    let mut reading = Reading::new(text, variables, escape, Quotes::Remove);
    reading.split = true;
    reading.until(None, 0)?;
    reading.end_word();
    Ok(reading.words)
}

struct Reading<'a> {
    signs: Vec<char>,
    at: usize,
    variables: &'a Variables,
    escape: char,
    quotes: Quotes,
    text: String,
    /// Whether white space ends a word.
    split: bool,
    words: Vec<String>,
    /// Whether the word that is being read is one although it may be empty: `""`.
    begun: bool,
}

impl<'a> Reading<'a> {
    fn new(text: &str, variables: &'a Variables, escape: char, quotes: Quotes) -> Self {
        Self {
            signs: text.chars().collect(),
            at: 0,
            variables,
            escape,
            quotes,
            text: String::new(),
            split: false,
            words: Vec::new(),
            begun: false,
        }
    }

    fn peek(&self) -> Option<char> {
        self.signs.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let sign = self.peek()?;
        self.at += 1;
        Some(sign)
    }

    fn push(&mut self, text: &str) -> Result<(), String> {
        if self.text.len() + text.len() > EXPANDED_MAX {
            return Err(format!("variables make more than {EXPANDED_MAX} bytes of it"));
        }
        self.text.push_str(text);
        Ok(())
    }

    fn end_word(&mut self) {
        if self.begun || !self.text.is_empty() {
            self.words.push(std::mem::take(&mut self.text));
            self.begun = false;
        }
    }

    /// Reads to the end, or to one of the signs that ends what is within braces; that one is taken.
    fn until(&mut self, ends: Option<&[char]>, depth: u32) -> Result<Option<char>, String> {
        if depth > DEPTH_MAX {
            return Err(format!("variables within variables more than {DEPTH_MAX} deep"));
        }
        let mut buffer = [0; 4];
        while let Some(sign) = self.next() {
            if ends.is_some_and(|ends| ends.contains(&sign)) {
                return Ok(Some(sign));
            }
            match sign {
                '\'' if self.quotes == Quotes::Remove => self.single()?,
                '"' if self.quotes == Quotes::Remove => self.double(depth)?,
                '$' => self.dollar(depth, self.split && ends.is_none())?,
                _ if sign == self.escape => self.escaped(ends.is_some())?,
                _ if self.split && ends.is_none() && sign.is_whitespace() => self.end_word(),
                _ => self.push(sign.encode_utf8(&mut buffer))?,
            }
        }
        match ends {
            Some(_) => Err("syntax error: missing '}'".to_owned()),
            None => Ok(None),
        }
    }

    /// What follows an escape, as it is.
    fn escaped(&mut self, inside: bool) -> Result<(), String> {
        let mut buffer = [0; 4];
        let escape = self.escape;
        match self.peek() {
            None => self.push(escape.encode_utf8(&mut buffer)),
            Some(next)
                if self.quotes == Quotes::Keep
                    && !(next == '$' || next == escape || (inside && next == '}')) =>
            {
                self.push(escape.encode_utf8(&mut buffer))
            }
            Some(next) => {
                self.at += 1;
                self.push(next.encode_utf8(&mut buffer))
            }
        }
    }

    fn single(&mut self) -> Result<(), String> {
        self.begun = true;
        let rest = &self.signs[self.at..];
        let end = rest
            .iter()
            .position(|sign| *sign == '\'')
            .ok_or("unexpected end of statement while looking for matching single-quote")?;
        let text: String = rest[..end].iter().collect();
        self.at += end + 1;
        self.push(&text)
    }

    fn double(&mut self, depth: u32) -> Result<(), String> {
        self.begun = true;
        let mut buffer = [0; 4];
        while let Some(sign) = self.next() {
            match sign {
                '"' => return Ok(()),
                '$' => self.dollar(depth, false)?,
                _ if sign == self.escape => match self.next() {
                    Some(next) if matches!(next, '"' | '$') || next == self.escape => {
                        self.push(next.encode_utf8(&mut buffer))?;
                    }
                    Some(next) => {
                        self.push(sign.encode_utf8(&mut buffer))?;
                        self.push(next.encode_utf8(&mut buffer))?;
                    }
                    None => break,
                },
                _ => self.push(sign.encode_utf8(&mut buffer))?,
            }
        }
        Err("unexpected end of statement while looking for matching double-quote".to_owned())
    }

    /// After a `$`. Whether white space in the value ends words.
    fn dollar(&mut self, depth: u32, split: bool) -> Result<(), String> {
        let value = if self.peek() == Some('{') {
            self.at += 1;
            self.braces(depth)?
        } else {
            let name = self.name();
            if name.is_empty() {
                return self.push("$");
            }
            self.variables.get(&name).cloned().unwrap_or_default()
        };
        if !split {
            return self.push(&value);
        }
        let mut pieces = value.split(char::is_whitespace);
        self.push(pieces.next().unwrap_or_default())?;
        for piece in pieces {
            self.end_word();
            self.push(piece)?;
        }
        Ok(())
    }

    /// Letters, digits and `_`, not beginning with a digit; or one sign that shells know.
    fn name(&mut self) -> String {
        let begin = self.at;
        match self.peek() {
            Some(sign) if sign.is_ascii_alphabetic() || sign == '_' => {
                while self.peek().is_some_and(|sign| sign.is_ascii_alphanumeric() || sign == '_') {
                    self.at += 1;
                }
            }
            Some(sign) if sign.is_ascii_digit() || "@*#!?-".contains(sign) => self.at += 1,
            _ => {}
        }
        self.signs[begin..self.at].iter().collect()
    }

    fn braces(&mut self, depth: u32) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err("syntax error: bad substitution".to_owned());
        }
        let value = self.variables.get(&name).cloned();
        let modifier = self.next().ok_or("syntax error: missing '}'")?;
        let colon = modifier == ':';
        let modifier = if colon { self.next().ok_or("syntax error: missing '}'")? } else { modifier };
        let set = value.as_ref().filter(|value| !(colon && value.is_empty()));
        match modifier {
            '}' if !colon => Ok(value.unwrap_or_default()),
            '-' => {
                let word = self.word(&['}'], depth)?.0;
                Ok(set.cloned().unwrap_or(word))
            }
            '+' => {
                let word = self.word(&['}'], depth)?.0;
                Ok(set.map(|_| word).unwrap_or_default())
            }
            '?' => {
                let word = self.word(&['}'], depth)?.0;
                let why = if word.is_empty() { "is not allowed to be unset".to_owned() } else { word };
                set.cloned().ok_or_else(|| format!("{name}: {why}"))
            }
            '#' | '%' if !colon => self.trimmed(&value.unwrap_or_default(), modifier, depth),
            '/' if !colon => self.replaced(&value.unwrap_or_default(), depth),
            other => {
                let colon = if colon { ":" } else { "" };
                Err(format!("unsupported modifier ({colon}{other}) in substitution of {name}"))
            }
        }
    }

    fn trimmed(&mut self, value: &str, modifier: char, depth: u32) -> Result<String, String> {
        let longest = self.peek() == Some(modifier);
        self.at += usize::from(longest);
        let pattern = self.pattern(&['}'], depth)?.0;
        let search = Search::new(&pattern, value)?;
        Ok(if modifier == '#' { search.without_beginning(longest) } else { search.without_end(longest) })
    }

    fn replaced(&mut self, value: &str, depth: u32) -> Result<String, String> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let (pattern, end) = self.pattern(&['/', '}'], depth)?;
        let with = if end == '/' { self.word(&['}'], depth)?.0 } else { String::new() };
        let replaced = Search::new(&pattern, value)?.replace(&with, all);
        if replaced.len() > EXPANDED_MAX {
            return Err(format!("variables make more than {EXPANDED_MAX} bytes of it"));
        }
        Ok(replaced)
    }

    /// A word within braces, and the sign that ended it.
    fn word(&mut self, ends: &[char], depth: u32) -> Result<(String, char), String> {
        let outer = std::mem::take(&mut self.text);
        let begun = self.begun;
        let end = self.until(Some(ends), depth + 1);
        let word = std::mem::replace(&mut self.text, outer);
        self.begun = begun;
        Ok((word, end?.unwrap_or('}')))
    }

    /// The same, for patterns: escapes are part of them.
    fn pattern(&mut self, ends: &[char], depth: u32) -> Result<(String, char), String> {
        let begin = self.at;
        let mut at = begin;
        while let Some(sign) = self.signs.get(at).copied() {
            if sign == self.escape {
                at += 2;
            } else if ends.contains(&sign) || matches!(sign, '$' | '\'' | '"') {
                break;
            } else {
                at += 1;
            }
        }
        match self.signs.get(at).copied() {
            Some(sign) if ends.contains(&sign) => {
                let escape = self.escape;
                self.at = at + 1;
                let raw = self.signs[begin..at].iter();
                Ok((raw.map(|sign| if *sign == escape { '\\' } else { *sign }).collect(), sign))
            }
            _ => self.word(ends, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("A", "one"), ("EMPTY", ""), ("P", "/usr/local/lib.tar.gz"), ("W", "a b  c")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn expanded(word: &str) -> Result<String, String> {
        expand(word, &variables(), '\\', Quotes::Remove)
    }

    #[test]
    fn every_modifier() {
        for (word, wanted) in [
            ("$A", "one"),
            ("${A}x$NONE.", "onex."),
            ("a$", "a$"),
            ("$A$", "one$"),
            (r"\$A", "$A"),
            (r"\\$A", r"\one"),
            ("'$A'", "$A"),
            ("\"$A b\"", "one b"),
            (r#""\$A \n""#, r"$A \n"),
            ("${NONE:-x$A}", "xone"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY-x}", ""),
            ("${NONE-x}", "x"),
            ("${A:+y}", "y"),
            ("${EMPTY:+y}", ""),
            ("${EMPTY+y}", "y"),
            ("${NONE+y}", ""),
            ("${NONE:-${EMPTY:-deep}}", "deep"),
            ("${A:?no}", "one"),
            ("${P#*/}", "usr/local/lib.tar.gz"),
            ("${P##*/}", "lib.tar.gz"),
            ("${P%.*}", "/usr/local/lib.tar"),
            ("${P%%.*}", "/usr/local/lib"),
            ("${P/l?/X}", "/usr/Xcal/lib.tar.gz"),
            ("${P//l/L}", "/usr/LocaL/Lib.tar.gz"),
            (r"${P/\//}", "usr/local/lib.tar.gz"),
            ("${P//\\//:}", ":usr:local:lib.tar.gz"),
            ("${A/n}", "oe"),
            ("${A#$A}", ""),
        ] {
            assert_eq!(expanded(word).as_deref(), Ok(wanted), "{word}");
        }
    }

    #[test]
    fn what_is_no_substitution() {
        for word in ["${", "${A", "${A:", "${}", "${A:x}", "${A^}", "'a", "\"a", "${NONE:?}", "${A:-b"] {
            assert!(expanded(word).is_err(), "{word}");
        }
        assert_eq!(expanded("${NONE:?who}"), Err("NONE: who".to_owned()));
        let deep = format!("{}x{}", "${N:-".repeat(2000), "}".repeat(2000));
        assert!(expanded(&deep).is_err());
    }

    #[test]
    fn words_are_split_where_nothing_quotes_them() {
        let words = |text| expand_words(text, &variables(), '\\').unwrap();
        assert_eq!(words("$W \"$W\" x"), ["a", "b", "c", "a b  c", "x"]);
        assert_eq!(words("'' $EMPTY $NONE y"), ["", "y"]);
        assert_eq!(words("80 ${NONE:-81 82}"), ["80", "81", "82"]);
    }

    #[test]
    fn heredocs_keep_their_quotes() {
        let text = "say \"$A\" '$A' \\$A \\n";
        assert_eq!(expand(text, &variables(), '\\', Quotes::Keep).as_deref(), Ok("say \"one\" 'one' $A \\n"));
    }
}
