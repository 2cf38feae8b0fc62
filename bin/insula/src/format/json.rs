//! JSON as the daemon wrote it, laid out for people: the order of fields stays.

/// `text`, which is valid JSON, with line ends and four spaces a level. `level` is where it starts.
pub(crate) fn indent(text: &str, level: usize) -> String {
    indented(text, level, "    ")
}

/// The same from the first column on, with another step.
pub(crate) fn indent_with(text: &str, step: &str) -> String {
    indented(text, 0, step)
}

fn indented(text: &str, level: usize, step: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut level = level;
    let mut characters = text.chars().filter(outside_space()).peekable();
    while let Some(character) = characters.next() {
        match character {
            '{' | '[' => {
                out.push(character);
                let close = if character == '{' { '}' } else { ']' };
                if characters.peek() == Some(&close) {
                    characters.next();
                    out.push(close);
                } else {
                    level += 1;
                    new_line(&mut out, level, step);
                }
            }
            '}' | ']' => {
                level = level.saturating_sub(1);
                new_line(&mut out, level, step);
                out.push(character);
            }
            ',' => {
                out.push(',');
                new_line(&mut out, level, step);
            }
            ':' => out.push_str(": "),
            '"' => {
                out.push('"');
                copy_string(&mut characters, &mut out);
            }
            other => out.push(other),
        }
    }
    out
}

fn new_line(out: &mut String, level: usize, step: &str) {
    out.push('\n');
    for _ in 0..level {
        out.push_str(step);
    }
}

/// The rest of a string, its closing quote included.
fn copy_string(characters: &mut impl Iterator<Item = char>, out: &mut String) {
    while let Some(character) = characters.next() {
        out.push(character);
        match character {
            '\\' => out.extend(characters.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// A predicate that drops white space outside of strings.
fn outside_space() -> impl FnMut(&char) -> bool {
    let (mut inside, mut escaped) = (false, false);
    move |character| {
        if inside {
            if escaped {
                escaped = false;
            } else if *character == '\\' {
                escaped = true;
            } else if *character == '"' {
                inside = false;
            }
            return true;
        }
        inside = *character == '"';
        !character.is_ascii_whitespace()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_stays_and_strings_are_untouched() {
        let text = r#"{"b":[1,{"c":"x: {,} \" y"}],"a":{}, "e":[ ], "n": null}"#;
        let expected = "{\n    \"b\": [\n        1,\n        {\n            \"c\": \"x: {,} \\\" y\"\n        }\n    ],\n    \"a\": {},\n    \"e\": [],\n    \"n\": null\n}";
        assert_eq!(indent(text, 0), expected);
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&indent(text, 1)).unwrap(), value);
    }
}
