//! Two answers, field by field.

use std::collections::{BTreeMap, BTreeSet};

use insula_tests::Response;
use serde_json::Value;

use super::accepted::Accepted;

pub(super) fn answers(accepted: &mut Accepted, request: &str, theirs: &Response, ours: &Response) {
    if theirs.status != ours.status {
        let what = format!("{} {} | {} {}", theirs.status, theirs.text(), ours.status, ours.text());
        return accepted.status(request, theirs.status, ours.status, what);
    }
    let json = |answer: &Response| serde_json::from_slice::<Value>(&answer.body).ok();
    match (json(theirs), json(ours)) {
        (Some(theirs), Some(ours)) if said(&theirs, &ours) => {}
        (Some(theirs), Some(ours)) => {
            fields(accepted, request, "", &theirs, &ours);
        }
        (None, None) if theirs.body == ours.body => {}
        // Archives and streams have tests of their own.
        (None, None) if theirs.status < 300 && theirs.body.is_empty() == ours.body.is_empty() => {}
        _ => accepted.field(request, "body", true, format!("{} | {}", theirs.text(), ours.text())),
    }
}

/// Whether both are errors that say the same, one of them perhaps more.
fn said(theirs: &Value, ours: &Value) -> bool {
    let words = |answer: &Value| {
        let object = answer.as_object().filter(|object| object.len() == 1)?;
        let text = object.get("message")?.as_str()?.trim().to_lowercase();
        let id = |word: &str| {
            if is_id(word.trim_matches(|c: char| !c.is_alphanumeric())) { "ID" } else { word }.to_owned()
        };
        Some(text.split(' ').map(id).collect::<Vec<_>>().join(" "))
    };
    match (words(theirs), words(ours)) {
        (Some(theirs), Some(ours)) if !theirs.is_empty() && !ours.is_empty() => {
            theirs.contains(&ours) || ours.contains(&theirs)
        }
        _ => false,
    }
}

fn fields(accepted: &mut Accepted, request: &str, at: &str, theirs: &Value, ours: &Value) {
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let (theirs, ours) = (by_name(theirs), by_name(ours));
            for name in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
                match (theirs.get(name), ours.get(name)) {
                    (Some(theirs), Some(ours)) => fields(accepted, request, &below(name), theirs, ours),
                    (Some(theirs), None) if accepted.newest => {
                        accepted.field(request, &below(name), false, format!("{theirs} | absent"));
                    }
                    (None, Some(ours)) => {
                        accepted.field(request, &below(name), false, format!("absent | {ours}"));
                    }
                    _ => {}
                }
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            let in_order = |list| match at.rsplit('/').next() {
                // Whatever came first.
                Some("VolumesDeleted" | "ContainersDeleted" | "NetworksDeleted") => alike(list),
                _ => sorted(list),
            };
            for (theirs, ours) in in_order(theirs).into_iter().zip(in_order(ours)) {
                fields(accepted, request, &below("*"), theirs, ours);
            }
        }
        _ if theirs == ours => {}
        _ => {
            let alike = kind(theirs) == kind(ours) && empty(theirs) == empty(ours);
            let at = if at.is_empty() { "." } else { at };
            accepted.field(request, at, alike, format!("{theirs} | {ours}"));
        }
    }
}

/// Ids are names in some documents.
fn by_name(object: &serde_json::Map<String, Value>) -> BTreeMap<&str, &Value> {
    object.iter().map(|(name, value)| (if is_id(name) { "ID" } else { name.as_str() }, value)).collect()
}

/// Lists have no order that counts, but for that of words.
fn sorted(list: &[Value]) -> Vec<&Value> {
    const KEYS: [&str; 7] = ["Destination", "Name", "Names", "RepoTags", "PrivatePort", "op", "CreatedBy"];
    let mut sorted: Vec<&Value> = list.iter().collect();
    if list.iter().all(Value::is_object) {
        sorted.sort_by_key(|value| KEYS.iter().find_map(|key| value.get(key)).map(key));
    }
    sorted
}

fn alike(list: &[Value]) -> Vec<&Value> {
    let mut sorted: Vec<&Value> = list.iter().collect();
    sorted.sort_by_key(|value| key(value));
    sorted
}

/// Ids are alike.
fn key(value: &Value) -> String {
    match value.as_str() {
        Some(text) if is_id(text) => "ID".to_owned(),
        _ => value.to_string(),
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn kind(value: &Value) -> std::mem::Discriminant<Value> {
    std::mem::discriminant(value)
}

/// Whether Go would leave it out.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// How often what happened to whom, and one of each kind field by field.
pub(super) fn events(accepted: &mut Accepted, theirs: &[Value], ours: &[Value]) {
    let name = |event: &Value| {
        let kind = event["Type"].as_str().unwrap_or_default();
        let action = event["Action"].as_str().unwrap_or_default();
        let of = event.pointer("/Actor/Attributes/name").and_then(Value::as_str);
        let of = of.filter(|_| matches!(kind, "container" | "network")).unwrap_or_default();
        format!("EVENT {kind} {action} {of}").trim_end().to_owned()
    };
    let told = |events: &[Value]| {
        let mut told: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        events.iter().for_each(|event| told.entry(name(event)).or_default().push(event.clone()));
        told
    };
    let (theirs, ours) = (told(theirs), told(ours));
    for name in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
        let count = |events: &BTreeMap<String, Vec<Value>>| events.get(name).map_or(0, Vec::len);
        if count(&theirs) != count(&ours) {
            accepted.field(name, "count", false, format!("{} | {}", count(&theirs), count(&ours)));
        } else {
            fields(accepted, name, "", &theirs[name][0], &ours[name][0]);
        }
    }
}
