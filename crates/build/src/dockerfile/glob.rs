//! Patterns of a shell, `*` and `?`, for the modifiers of variables.

/// Steps of a search; real ones take thousands.
const STEPS_MAX: usize = 1 << 26;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Many,
    One,
    Sign(char),
}

/// A pattern and a text that are short enough for each other.
pub(super) struct Search {
    pattern: Vec<Token>,
    text: Vec<char>,
}

impl Search {
    /// # Errors
    /// When they are too long.
    pub(super) fn new(pattern: &str, text: &str) -> Result<Self, String> {
        let text: Vec<char> = text.chars().collect();
        let mut tokens = Vec::new();
        let mut signs = pattern.chars();
        while let Some(sign) = signs.next() {
            match sign {
                '*' if tokens.last() == Some(&Token::Many) => {}
                '*' => tokens.push(Token::Many),
                '?' => tokens.push(Token::One),
                '\\' => tokens.push(Token::Sign(signs.next().unwrap_or('\\'))),
                _ => tokens.push(Token::Sign(sign)),
            }
        }
        let steps = text.len().saturating_mul(text.len()).saturating_mul(tokens.len() + 1);
        if steps > STEPS_MAX {
            return Err("a pattern and the value that it is looked for in are too long".to_owned());
        }
        Ok(Self { pattern: tokens, text })
    }

    /// `${A#p}`, `${A##p}`.
    pub(super) fn without_beginning(&self, longest: bool) -> String {
        let (first, last) = ends(&self.pattern, &self.text).unwrap_or((0, 0));
        self.text[if longest { last } else { first }..].iter().collect()
    }

    /// `${A%p}`, `${A%%p}`.
    pub(super) fn without_end(&self, longest: bool) -> String {
        let pattern: Vec<Token> = self.pattern.iter().rev().copied().collect();
        let text: Vec<char> = self.text.iter().rev().copied().collect();
        let (first, last) = ends(&pattern, &text).unwrap_or((0, 0));
        self.text[..text.len() - if longest { last } else { first }].iter().collect()
    }

    /// `${A/p/w}`, `${A//p/w}`: the leftmost piece, as long as it can be.
    pub(super) fn replace(&self, with: &str, all: bool) -> String {
        let mut out = String::new();
        let (mut at, mut searching) = (0, !self.pattern.is_empty());
        while at < self.text.len() {
            let found = searching.then(|| ends(&self.pattern, &self.text[at..])).flatten();
            match found {
                Some((_, length)) if length > 0 => {
                    out.push_str(with);
                    at += length;
                    searching = all;
                }
                _ => {
                    out.push(self.text[at]);
                    at += 1;
                }
            }
        }
        out
    }
}

/// The shortest and the longest beginning of the text that is like the pattern.
fn ends(pattern: &[Token], text: &[char]) -> Option<(usize, usize)> {
    // Which tokens may come next.
    let mut states = vec![false; pattern.len() + 1];
    states[0] = true;
    let mut found: Option<(usize, usize)> = None;
    for length in 0..=text.len() {
        // A star may stand for nothing.
        for (token, kind) in pattern.iter().enumerate() {
            states[token + 1] |= states[token] && *kind == Token::Many;
        }
        if states[pattern.len()] {
            found = Some((found.map_or(length, |(first, _)| first), length));
        }
        let Some(sign) = text.get(length) else { break };
        let mut next = vec![false; pattern.len() + 1];
        for (token, kind) in pattern.iter().enumerate().filter(|(token, _)| states[*token]) {
            match kind {
                Token::Many => next[token] = true,
                Token::One => next[token + 1] = true,
                Token::Sign(wanted) => next[token + 1] |= wanted == sign,
            }
        }
        if !next.contains(&true) {
            break;
        }
        states = next;
    }
    found
}
