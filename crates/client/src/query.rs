//! Paths and queries: percent-encoding by RFC 3986, section 2.

use std::collections::BTreeMap;
use std::fmt::Write;

/// `text` with everything but the unreserved characters encoded; safe as one path segment.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The query of a request, in the order in which it is built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(String);

impl Query {
    /// No parameters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&encode(value));
        self
    }

    /// Adds a parameter unless the value is empty.
    #[must_use]
    pub fn with_text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.with(name, value) }
    }

    /// Adds `name=1` when set.
    #[must_use]
    pub fn with_flag(self, name: &str, set: bool) -> Self {
        if set { self.with(name, "1") } else { self }
    }

    /// Adds a number when there is one.
    #[must_use]
    pub fn with_number(self, name: &str, value: Option<i64>) -> Self {
        match value {
            Some(value) => self.with(name, &value.to_string()),
            None => self,
        }
    }

    /// Adds `filters` when there are any.
    #[must_use]
    pub fn with_filters(self, filters: &Filters) -> Self {
        if filters.0.is_empty() { self } else { self.with("filters", &filters.to_json()) }
    }

    /// `?a=b&c=d`, or nothing.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a list is narrowed to: any of the values of every name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Adds a value to a name.
    pub fn add(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_owned()).or_default().push(value.to_owned());
    }

    /// Whether nothing is filtered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The API's form: `{"name":["value"]}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::Value::from(
            self.0
                .iter()
                .map(|(name, values)| (name.clone(), serde_json::Value::from(values.clone())))
                .collect::<serde_json::Map<_, _>>(),
        )
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let mut filters = Filters::default();
        filters.add("label", "a=b");
        filters.add("label", "c");
        let query = Query::new().with_flag("all", true).with_flag("size", false).with_filters(&filters);
        assert_eq!(query.as_str(), "?all=1&filters=%7B%22label%22%3A%5B%22a%3Db%22%2C%22c%22%5D%7D");
        assert_eq!(encode("a/b c+ü"), "a%2Fb%20c%2B%C3%BC");
    }
}
