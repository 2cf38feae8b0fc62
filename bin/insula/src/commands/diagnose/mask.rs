//! What is left out of a diagnosis, and what is masked in it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What is shorter is a word like any other.
const SHORTEST: usize = 6;
const MASKED: &str = "***";

/// Values that must not be shown.
#[derive(Debug, Default)]
pub(super) struct Mask {
    values: BTreeSet<String>,
}

impl Mask {
    /// Takes what a container's or image's document has in variables, labels and arguments.
    pub(super) fn learn(&mut self, document: &Value) {
        let texts = |path: &str| document.pointer(path).and_then(Value::as_array).into_iter().flatten();
        for variable in texts("/Config/Env").filter_map(Value::as_str) {
            self.add(variable.split_once('=').map_or(variable, |(_, value)| value));
        }
        for path in ["/Args", "/Config/Cmd", "/Config/Entrypoint", "/Config/Healthcheck/Test"] {
            texts(path).filter_map(Value::as_str).for_each(|argument| self.add(argument));
        }
        document.get("Path").and_then(Value::as_str).into_iter().for_each(|path| self.add(path));
        for path in ["/Config/Labels", "/HostConfig/LogConfig/Config"] {
            let labels = document.pointer(path).and_then(Value::as_object).into_iter().flatten();
            labels.filter_map(|(_, value)| value.as_str()).for_each(|value| self.add(value));
        }
    }

    /// A value, each of its lines, and both as JSON has them.
    fn add(&mut self, value: &str) {
        for part in [value].into_iter().chain(value.lines()) {
            if part.len() >= SHORTEST {
                let quoted = Value::from(part).to_string();
                self.values.insert(quoted[1..quoted.len() - 1].to_owned());
                self.values.insert(part.to_owned());
            }
        }
    }

    /// The longest first: one may be a part of another.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut values: Vec<&String> = self.values.iter().collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.iter().fold(text.to_owned(), |text, value| {
            if text.contains(value.as_str()) { text.replace(value.as_str(), MASKED) } else { text }
        })
    }
}

/// The fields of these paths, as far as they are there.
pub(super) fn pick(document: &Value, paths: &[&str]) -> Value {
    let mut picked = Value::Object(Map::new());
    for path in paths {
        if let Some(value) = document.pointer(&format!("/{path}")) {
            let mut place = &mut picked;
            for name in path.split('/') {
                place = &mut place[name];
            }
            *place = value.clone();
        }
    }
    picked
}

/// A text in whose addresses user and password are masked, and so is what follows a word for a secret.
pub(super) fn without_credentials(text: &str) -> String {
    text.lines().map(|line| line_without_credentials(line) + "\n").collect()
}

fn line_without_credentials(line: &str) -> String {
    let mut rest = line;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once("://") {
        text.push_str(before);
        text.push_str("://");
        let end = after
            .find(|letter: char| letter.is_whitespace() || "/\"',".contains(letter))
            .unwrap_or(after.len());
        match after[..end].rfind('@') {
            Some(at) => {
                text.push_str(MASKED);
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    text.push_str(rest);
    let lower = text.to_ascii_lowercase();
    let named =
        ["password", "passwd", "secret", "token", "credential"].into_iter().find_map(|word| lower.find(word));
    let separator = ['=', ':', ' '];
    let Some(at) = named.and_then(|at| Some(at + text[at..].find(separator)?)) else { return text };
    let value = text[at..].trim_start_matches(separator);
    format!("{}{MASKED}", &text[..text.len() - value.len()])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_masked_wherever_they_come_up() {
        let mut mask = Mask::default();
        mask.learn(&json!({
            "Path": "/bin/run-me",
            "Args": ["--password=hunter2"],
            "Config": {
                "Env": ["KEY=s3cr3t-value", "A=b", "MANY=first line\nsecond \"line\""],
                "Labels": {"owner": "somebody else"},
                "Healthcheck": {"Test": ["CMD", "curl user:pass"]},
            },
            "HostConfig": {"LogConfig": {"Config": {"syslog-address": "udp://log:514"}}},
        }));
        let text = "exec /bin/run-me --password=hunter2: s3cr3t-value, second \\\"line\\\", somebody else, b";
        assert_eq!(mask.apply(text), "exec *** ***: ***, ***, ***, b");
        assert_eq!(mask.apply("curl user:pass to udp://log:514"), "*** to ***");
        assert_eq!(Mask::default().apply("as it is"), "as it is");
    }

    #[test]
    fn only_what_is_named_is_picked() {
        let document = json!({"Id": "a", "State": {"Status": "running", "Secret": 1}, "Env": ["x"]});
        let picked = pick(&document, &["Id", "State/Status", "State/Missing", "No/Such"]);
        assert_eq!(picked, json!({"Id": "a", "State": {"Status": "running"}}));
        assert_eq!(pick(&Value::Null, &["Id"]), json!({}));
    }

    #[test]
    fn credentials_are_not_shown() {
        for (text, shown) in [
            ("mirror = \"https://user:pw@mirror.example/a\"", "mirror = \"https://***@mirror.example/a\""),
            (
                "--registry-mirror=https://u:p@w@m.example,http://v:q@n",
                "--registry-mirror=https://***@m.example,http://***@n",
            ),
            ("http-password = \"x\"", "http-password = ***"),
            ("--root /srv", "--root /srv"),
            ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ] {
            assert_eq!(without_credentials(text), format!("{shown}\n"));
        }
    }
}
