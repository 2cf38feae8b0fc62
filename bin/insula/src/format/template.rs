//! Go templates with Docker's functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::anyhow;
use gotmpl::{Template, TemplateError, Value};

use super::fields::{self, Data};
use super::typed;

/// A template that was understood.
pub(crate) struct Compiled {
    template: Template,
    /// What was parsed, for errors to point into.
    text: String,
}

impl Compiled {
    /// `text` with `\t` and `\n` spelled as two characters, as shells leave them.
    pub(crate) fn new(text: &str) -> anyhow::Result<Self> {
        Self::parse(functions(Template::new(fields::ITSELF)), text)
    }

    /// For a table's header: the functions give their first argument back.
    pub(crate) fn of_headers(source: &str) -> anyhow::Result<Self> {
        let mut template = Template::new(fields::ITSELF);
        for name in ["json", "split", "join", "title", "lower", "upper", "pad", "truncate", "label"] {
            template = template.func(name, |arguments| Ok(arguments.first().cloned().unwrap_or(Value::Nil)));
        }
        let template = template.func("label", |arguments| {
            let name = text("Label", arguments, 1)?;
            let last = name.rsplit('.').next().unwrap_or_default();
            Ok(Value::from(last.replace(['-', '_'], " ")))
        });
        Self::parse(template, source)
    }

    fn parse(template: Template, text: &str) -> anyhow::Result<Self> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        // A method with an argument is not known to the template engine, a function is.
        let text = text.replace(".Label ", "label .InsulaLabels ");
        match fields::parse(template, &text) {
            Ok(template) => Ok(Self { template, text }),
            Err(error) => Err(worded(&error, &text)),
        }
    }

    pub(crate) fn render(&self, data: &Data) -> anyhow::Result<String> {
        fields::render(&self.template, data).map_err(|error| worded(&error, &self.text))
    }
}

/// An error as Go words it for a template without a name, with Docker's words before it.
fn worded(error: &TemplateError, text: &str) -> anyhow::Error {
    let said = match error {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            format!(":{line}: {message}")
        }
        TemplateError::UndefinedFunction(name) => {
            let (line, _) = text.find(name.as_str()).map_or((1, 0), |at| place(text, at));
            format!(":{line}: function {name:?} not defined")
        }
        // It says already where it stands.
        TemplateError::Exec(said) if said.starts_with(':') => said.clone(),
        other => format!(": executing \"\": {other}"),
    };
    anyhow!("template parsing error: template: {said}")
}

/// The line, from one, and the byte in it, from zero, as Go counts them.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    (before.matches('\n').count() + 1, at - before.rfind('\n').map_or(0, |newline| newline + 1))
}

/// JSON as template data.
pub(crate) fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::Int(integer),
            (None, Some(large)) => Value::Uint(large),
            (None, None) => Value::Float(number.as_f64().unwrap_or(0.0)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        serde_json::Value::Object(fields) => Value::from(
            fields
                .iter()
                .map(|(name, field)| (Arc::from(name.as_str()), value(field)))
                .collect::<BTreeMap<_, _>>(),
        ),
    }
}

/// Template data as JSON again.
fn json(value: &Value) -> serde_json::Value {
    match value {
        _ if typed::is_null(value) => serde_json::Value::Null,
        Value::Nil | Value::Function(_) => serde_json::Value::Null,
        Value::Bool(truth) => (*truth).into(),
        Value::Int(integer) => (*integer).into(),
        Value::Uint(integer) => (*integer).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_ref().into(),
        Value::List(items) => items.iter().map(json).collect::<Vec<_>>().into(),
        Value::Map(fields) => fields
            .iter()
            .filter(|(name, field)| name.as_ref() != "InsulaLabels" && !typed::left_out(field))
            .map(|(name, field)| (name.to_string(), json(field)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        #[expect(unreachable_patterns, reason = "a variant that a feature of the engine adds")]
        other => other.to_string().into(),
    }
}

fn functions(template: Template) -> Template {
    template
        .func("index", index)
        .func("json", |arguments| Ok(Value::from(json(argument("json", arguments, 0)?).to_string())))
        .func("lower", |arguments| text_function("lower", arguments, str::to_lowercase))
        .func("upper", |arguments| text_function("upper", arguments, str::to_uppercase))
        .func("title", |arguments| text_function("title", arguments, title))
        .func("split", |arguments| {
            let (text, separator) = (text("split", arguments, 0)?, text("split", arguments, 1)?);
            Ok(Value::from(text.split(separator.as_str()).map(Value::from).collect::<Vec<_>>()))
        })
        .func("join", |arguments| {
            let separator = text("join", arguments, 1)?;
            match argument("join", arguments, 0)? {
                Value::List(items) => {
                    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                    Ok(Value::from(items.join(&separator)))
                }
                Value::Nil => Ok(Value::from("")),
                _ => Err(TemplateError::Exec("join: a list is expected".to_owned())),
            }
        })
        .func("pad", |arguments| {
            let width =
                |index| Ok::<_, TemplateError>(number("pad", arguments, index)?.clamp(0, 1000) as usize);
            let (before, after) = (" ".repeat(width(1)?), " ".repeat(width(2)?));
            match text("pad", arguments, 0)?.as_str() {
                "" => Ok(Value::from("")),
                text => Ok(Value::from(format!("{before}{text}{after}"))),
            }
        })
        .func("truncate", |arguments| {
            let length = usize::try_from(number("truncate", arguments, 1)?).unwrap_or(0);
            let cut: String = text("truncate", arguments, 0)?.chars().take(length).collect();
            Ok(Value::from(cut))
        })
        .func("label", |arguments| {
            let name = text("Label", arguments, 1)?;
            Ok(argument("Label", arguments, 0)?.field(&name).cloned().unwrap_or_else(|| Value::from("")))
        })
}

/// A name that a map of texts does not have is an empty text, as in Go.
fn index(arguments: &[Value]) -> Result<Value, TemplateError> {
    let mut value = argument("index", arguments, 0)?.clone();
    for index in &arguments[1..] {
        value = match (&value, index) {
            (Value::Map(map), Value::String(name))
                if !map.contains_key(name) && map.values().all(|value| matches!(value, Value::String(_))) =>
            {
                Value::from("")
            }
            _ => value.index(index)?,
        };
    }
    Ok(value)
}

fn argument<'a>(name: &str, arguments: &'a [Value], index: usize) -> Result<&'a Value, TemplateError> {
    arguments.get(index).ok_or_else(|| TemplateError::ArgCount {
        name: name.to_owned(),
        expected: index + 1,
        got: arguments.len(),
    })
}

fn text(name: &str, arguments: &[Value], index: usize) -> Result<String, TemplateError> {
    argument(name, arguments, index).map(|value| match value {
        Value::Nil => String::new(),
        other => other.to_string(),
    })
}

fn number(name: &str, arguments: &[Value], index: usize) -> Result<i64, TemplateError> {
    argument(name, arguments, index)?
        .as_int()
        .ok_or_else(|| TemplateError::Exec(format!("{name}: a number is expected")))
}

fn text_function(
    name: &str,
    arguments: &[Value],
    change: impl Fn(&str) -> String,
) -> Result<Value, TemplateError> {
    Ok(Value::from(change(&text(name, arguments, 0)?)))
}

fn title(text: &str) -> String {
    let mut start = true;
    text.chars()
        .map(|character| {
            let shown = if start { character.to_ascii_uppercase() } else { character };
            start = !character.is_alphanumeric();
            shown
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> anyhow::Result<String> {
        let data = serde_json::json!({
            "State": {"Pid": 42, "Status": "running"},
            "Names": ["a", "b"],
            "Limit": 18446744073709551615u64,
            "Nothing": null,
        });
        Compiled::new(template)?.render(&value(&data).into())
    }

    #[test]
    fn dockers_functions() {
        let cases = [
            ("{{.State.Pid}}", "42"),
            ("{{json .State}}", r#"{"Pid":42,"Status":"running"}"#),
            ("{{json .Nothing}}", "null"),
            ("{{.Limit}}", "18446744073709551615"),
            ("{{join .Names \", \"}}", "a, b"),
            ("{{index (split \"x:y\" \":\") 1}}", "y"),
            ("{{upper .State.Status}} {{title \"two words\"}}", "RUNNING Two Words"),
            ("{{pad \"x\" 1 2}}|", " x  |"),
            ("{{truncate .State.Status 3}}", "run"),
            ("{{range .Names}}{{println .}}{{end}}", "a\nb\n"),
            ("a\\tb", "a\tb"),
            ("{{if eq .State.Status \"running\"}}yes{{end}}", "yes"),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn errors_are_worded_as_dockers() {
        let cases = [
            ("{{.State.No}}", ":1:8: executing \"\" at <.State.No>: map has no entry for key \"No\""),
            ("{{.No}}", ":1:2: executing \"\" at <.No>: map has no entry for key \"No\""),
            ("{{.State.Pid}}\\n {{.No}}", ":2:3: executing \"\" at <.No>: map has no entry for key \"No\""),
            ("{{nope .}}", ":1: function \"nope\" not defined"),
            ("{{.State", ":1: unclosed action"),
        ];
        for (template, expected) in cases {
            let said = render(template).unwrap_err().to_string();
            assert_eq!(said, format!("template parsing error: template: {expected}"), "{template}");
        }
    }
}
