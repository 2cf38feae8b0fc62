//! `WWW-Authenticate` (RFC 9110 section 11.6.1).

/// Bytes of a header that are looked at.
const HEADER_MAX: usize = 16 << 10;
/// Challenges, and parameters of one.
const COUNT_MAX: usize = 32;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lowercase: `basic`, `bearer`.
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its lowercase name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header, those that can be understood. Quoted strings may hold commas, which
/// also stand between parameters and between challenges.
#[must_use]
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = match header.len() {
        0..=HEADER_MAX => header,
        _ => "",
    };
    while found.len() <= COUNT_MAX {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        match (spaced.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = parameter_value(value) else { break };
                if challenge.parameters.len() < COUNT_MAX {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            // A parameter of no challenge.
            (Some(_), None) => break,
            (None, _) => {
                found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
    found.truncate(COUNT_MAX);
    found
}

/// RFC 9110 section 5.6.2.
fn token(text: &str) -> (&str, &str) {
    let end = text
        .bytes()
        .position(|b| !b.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~/".contains(&b))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A token or a quoted string, and what follows.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start_matches([' ', '\t']);
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = token(text);
        return Some((word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_server_is_named() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry, \"main\"",scope="repository:a/b:pull,push""#;
        let found = challenges(header);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameter("realm"), Some("https://auth.example/token"));
        assert_eq!(found[0].parameter("service"), Some("registry, \"main\""));
        assert_eq!(found[0].parameter("scope"), Some("repository:a/b:pull,push"));
    }

    #[test]
    fn many_challenges_in_one_header() {
        let found = challenges("Negotiate, Basic realm = simple , charset=\"UTF-8\", BEARER realm=\"x\"");
        let schemes: Vec<_> = found.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(found[1].parameter("realm"), Some("simple"));
        assert_eq!(found[1].parameter("charset"), Some("UTF-8"));
    }

    #[test]
    fn nonsense_is_bounded() {
        assert!(challenges("").is_empty());
        assert!(challenges("=,=").is_empty());
        assert!(challenges("realm=\"x\"").is_empty());
        assert_eq!(challenges("Bearer realm=\"x").len(), 1);
        assert!(challenges(&"a ".repeat(1000)).len() <= COUNT_MAX);
        assert!(challenges(&"a ".repeat(HEADER_MAX)).is_empty());
        assert!(challenges("Bearer realm=\"\\").len() <= 1);
        let _ = challenges("B\u{e9}arer \u{1F600}=\"\u{e9}\\\u{e9}\"");
    }
}
