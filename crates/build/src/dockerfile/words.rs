//! Words of an instruction: with quotes, as a JSON list, as pairs.

/// The first word, and what follows it.
pub(super) fn keyword(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    match text.find(char::is_whitespace) {
        Some(end) => (&text[..end], text[end..].trim_start()),
        None => (text, ""),
    }
}

/// The exec form: a JSON list of strings.
pub(super) fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// Words as they are written, quotes and escapes included.
pub(super) fn shell_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut signs = text.chars();
    while let Some(sign) = signs.next() {
        if sign.is_whitespace() && quote.is_none() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(sign);
        match quote {
            Some(open) if sign == open => quote = None,
            Some('\'') => {}
            _ if sign == escape => word.extend(signs.next()),
            None if matches!(sign, '"' | '\'') => quote = Some(sign),
            _ => {}
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A word without its quotes and escapes; `None` if a quote stays open.
pub(super) fn unquote(word: &str, escape: char) -> Option<String> {
    let mut plain = String::with_capacity(word.len());
    let mut quote: Option<char> = None;
    let mut signs = word.chars();
    while let Some(sign) = signs.next() {
        match quote {
            Some(open) if sign == open => quote = None,
            Some('\'') => plain.push(sign),
            _ if sign == escape => plain.extend(signs.next()),
            None if matches!(sign, '"' | '\'') => quote = Some(sign),
            _ => plain.push(sign),
        }
    }
    quote.is_none().then_some(plain)
}
