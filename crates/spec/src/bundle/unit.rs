//! The unit of systemd that a container's control group is: `linux.cgroupsPath` as `slice:prefix:name`, and
//! annotations `org.systemd.property.NAME`, as the runtimes of the field have them.

use super::document::Config;
use super::{Result, invalid, unsupported};

const AT: &str = "linux.cgroupsPath";
/// Annotations that begin so are properties of the unit.
const PROPERTY: &str = "org.systemd.property.";
/// Longest name of a unit: systemd.unit(5).
const LONGEST: usize = 255;

/// A scope to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitPlan {
    pub name: String,
    pub slice: String,
    pub properties: Vec<(String, UnitValue)>,
}

/// A value as systemd's properties have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitValue {
    Flag(bool),
    Text(String),
    Signed(i32),
    Unsigned(u32),
    Long(i64),
    /// Most limits.
    Limit(u64),
    Bytes(Vec<u8>),
    Numbers(Vec<u32>),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
}

impl UnitPlan {
    /// Where the group is expected below the root of systemd's own groups: `a-b.slice` is in `a.slice`.
    #[must_use]
    pub fn path(&self) -> String {
        below(&self.slice) + &self.name
    }
}

fn below(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    let mut path = String::new();
    if name != "-" {
        for (end, _) in name.match_indices('-') {
            path.push_str(&format!("{}.slice/", &name[..end]));
        }
        path.push_str(&format!("{name}.slice/"));
    }
    path
}

/// Where a group is to be made by its path, for who has no unit made: a path in systemd's words is in its slice.
#[must_use]
pub fn in_slice(path: &str) -> String {
    match path.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if is_slice(slice) => format!("{}{prefix}-{name}", below(slice)),
        _ => path.to_owned(),
    }
}

/// Whether the path is one that only systemd can be asked for.
#[must_use]
pub fn names_unit(config: &Config) -> bool {
    let asked = config.linux.as_ref().and_then(|linux| linux.cgroups_path.as_deref()).unwrap_or_default();
    matches!(asked.split(':').collect::<Vec<_>>()[..], [slice, _, _] if is_slice(slice))
}

/// What the bundle of the container `id` asks for; `slice` is for those that name none.
pub fn unit(config: &Config, id: &str, slice: &str) -> Result<UnitPlan> {
    let asked = config.linux.as_ref().and_then(|linux| linux.cgroups_path.as_deref()).unwrap_or_default();
    let (slice, prefix, name) = match asked.split(':').collect::<Vec<_>>()[..] {
        [""] => (slice, "insula", id),
        ["", prefix, name] => (slice, prefix, name),
        [own, prefix, name] => (own, prefix, name),
        _ => return Err(invalid(AT, format!("{asked:?} is not slice:prefix:name, which systemd wants"))),
    };
    if !is_slice(slice) {
        return Err(invalid(AT, format!("{slice:?} is no name of a slice")));
    }
    if name.ends_with(".slice") {
        return Err(unsupported(AT, format!("a container in the slice {name:?} instead of a scope")));
    }
    let joined = if prefix.is_empty() { String::new() } else { format!("{prefix}-") };
    let unit = format!("{joined}{name}.scope");
    if name.is_empty() || unit.len() > LONGEST || !unit.bytes().all(is_of_units) {
        return Err(invalid(AT, format!("{unit:?} is no name of a unit")));
    }
    Ok(UnitPlan { name: unit, slice: slice.to_owned(), properties: properties(config)? })
}

/// systemd.unit(5): letters, digits and `:-_.\@`.
fn is_of_units(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte)
}

fn is_slice(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".slice") else { return false };
    let parts = || stem.split('-');
    stem == "-"
        || (name.len() <= LONGEST && stem.bytes().all(is_of_units) && parts().all(|part| !part.is_empty()))
}

fn properties(config: &Config) -> Result<Vec<(String, UnitValue)>> {
    let asked = config.annotations.iter().flatten();
    let asked = asked.filter_map(|(key, text)| Some((key, key.strip_prefix(PROPERTY)?, text)));
    asked
        .map(|(key, name, text)| {
            let at = || format!("annotations.{key}");
            let value = value(text).ok_or_else(|| invalid(at(), format!("{text:?} is no value")))?;
            let known = name.starts_with(|first: char| first.is_ascii_uppercase())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !known {
                return Err(invalid(at(), format!("{name:?} is no name of a property")));
            }
            match name
                .strip_suffix("Sec")
                .filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase()))
            {
                // In seconds, where systemd has microseconds, as other runtimes take it; not `USec`, which is that.
                Some(stem) => Ok((
                    format!("{stem}USec"),
                    microseconds(&value).ok_or_else(|| invalid(at(), format!("{text:?} are no seconds")))?,
                )),
                None => Ok((name.to_owned(), value)),
            }
        })
        .collect()
}

fn microseconds(value: &UnitValue) -> Option<UnitValue> {
    let seconds = match value {
        UnitValue::Signed(seconds) => u64::try_from(*seconds).ok()?,
        UnitValue::Long(seconds) => u64::try_from(*seconds).ok()?,
        UnitValue::Unsigned(seconds) => u64::from(*seconds),
        UnitValue::Limit(seconds) => *seconds,
        _ => return None,
    };
    seconds.checked_mul(1_000_000).map(UnitValue::Limit)
}

/// The part of GVariant's text format that properties of units have.
fn value(text: &str) -> Option<UnitValue> {
    let text = text.trim();
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return texts(list).map(UnitValue::Texts);
    }
    match text {
        "true" => return Some(UnitValue::Flag(true)),
        "false" => return Some(UnitValue::Flag(false)),
        _ => {}
    }
    match text.split_once(' ') {
        Some(("uint32", number)) => number.trim().parse().ok().map(UnitValue::Unsigned),
        Some(("uint64", number)) => number.trim().parse().ok().map(UnitValue::Limit),
        Some(("int32", number)) => number.trim().parse().ok().map(UnitValue::Signed),
        Some(("int64", number)) => number.trim().parse().ok().map(UnitValue::Long),
        Some(("boolean", flag)) => flag.trim().parse().ok().map(UnitValue::Flag),
        _ => match quoted(text) {
            Some((string, "")) => Some(UnitValue::Text(string)),
            _ => text.parse().ok().map(UnitValue::Signed),
        },
    }
}

fn texts(list: &str) -> Option<Vec<String>> {
    let mut rest = list.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (text, after) = quoted(rest)?;
        all.push(text);
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start();
        }
    }
    Some(all)
}

/// A string in either kind of quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|first| ['\'', '"'].contains(first))?;
    let mut string = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => string.push(match letters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                plain @ ('\\' | '\'' | '"') => plain,
                _ => return None,
            }),
            '\0' => return None,
            letter if letter == quote => return Some((string, &text[at + letter.len_utf8()..])),
            letter => string.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::document::parse;
    use super::*;

    fn asked(path: &str, annotations: serde_json::Value) -> Result<UnitPlan> {
        let text = json!({"linux": {"cgroupsPath": path}, "annotations": annotations}).to_string();
        unit(&parse(text.as_bytes(), "config.json").unwrap(), "box", "system.slice")
    }

    #[test]
    fn the_path_names_slice_prefix_and_name() {
        let named = |path: &str| asked(path, json!({})).map(|unit| (unit.path(), unit.slice, unit.name));
        let of = |path: &str, slice: &str, name: &str| Ok((path.into(), slice.into(), name.into()));
        assert_eq!(named(""), of("system.slice/insula-box.scope", "system.slice", "insula-box.scope"));
        assert_eq!(
            named("kubepods-besteffort-pod1.slice:cri:abc"),
            of(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-abc.scope",
                "kubepods-besteffort-pod1.slice",
                "cri-abc.scope"
            )
        );
        assert_eq!(in_slice("a-b.slice:cri:x"), "a.slice/a-b.slice/cri-x");
        assert_eq!(in_slice("a/b:c:d"), "a/b:c:d");
        assert_eq!(named("::x"), of("system.slice/x.scope", "system.slice", "x.scope"));
        assert_eq!(named("-.slice:a:b"), of("a-b.scope", "-.slice", "a-b.scope"));
        let asks = |path: &str| {
            let text = json!({"linux": {"cgroupsPath": path}}).to_string();
            names_unit(&parse(text.as_bytes(), "config.json").unwrap())
        };
        assert!(asks("kubepods.slice:cri:x") && !asks("/kubepods/x") && !asks("") && !asks("a:b:c"));
        for wrong in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a:b:c",
            "a--b.slice:c:d",
            ".slice:c:d",
            "../x.slice:c:d",
            "::",
            ":a:b/c",
            ":a:b.slice",
        ] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn annotations_are_properties() {
        let one = |name: &str, text: &str| {
            asked("", json!({format!("{PROPERTY}{name}"): text, "other": "x"})).map(|unit| unit.properties)
        };
        let is = |name: &str, value: UnitValue| Ok(vec![(name.to_owned(), value)]);
        assert_eq!(one("CollectMode", "'inactive'"), is("CollectMode", UnitValue::Text("inactive".into())));
        assert_eq!(one("TimeoutStopUSec", "uint64 10"), is("TimeoutStopUSec", UnitValue::Limit(10)));
        assert_eq!(one("TimeoutStopSec", "3"), is("TimeoutStopUSec", UnitValue::Limit(3_000_000)));
        assert_eq!(one("SendSIGHUP", "true"), is("SendSIGHUP", UnitValue::Flag(true)));
        let after = UnitValue::Texts(vec!["a.service".into(), "it's".into()]);
        assert_eq!(one("After", r#"['a.service', "it's"]"#), is("After", after));
        for (name, text) in [
            ("X", "word"),
            ("X", "'open"),
            ("X", "uint32 -1"),
            ("x/y", "1"),
            ("AsSec", "'a'"),
            ("X", "['a' 'b']"),
        ] {
            assert!(one(name, text).is_err(), "{name} {text}");
        }
    }
}
