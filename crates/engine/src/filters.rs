//! The parameter `filters` and moments in time, as every list takes them.

use std::collections::BTreeMap;

use insula_models::Labels;
use jiff::{SignedDuration, Timestamp};

use crate::{Error, Result};

/// Names and values of the parameter `filters`.
pub type Filters = BTreeMap<String, Vec<String>>;

/// Fails for a name that is not `known`.
pub(crate) fn check_names(filters: &Filters, known: &[&str]) -> Result<()> {
    match filters.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Error::InvalidArgument(format!("invalid filter '{name}'"))),
        None => Ok(()),
    }
}

/// The value of a filter that is true or false.
pub(crate) fn one_bool(filters: &Filters, name: &str) -> Result<Option<bool>> {
    let Some(values) = filters.get(name) else { return Ok(None) };
    match values.as_slice() {
        [value] => match value.as_str() {
            "1" | "true" | "True" | "TRUE" | "t" | "T" => Ok(Some(true)),
            "0" | "false" | "False" | "FALSE" | "f" | "F" => Ok(Some(false)),
            _ => Err(Error::InvalidArgument(format!("invalid filter '{name}={value}'"))),
        },
        _ => {
            Err(Error::InvalidArgument(format!("invalid filter '{name}={values:?}': one value is expected")))
        }
    }
}

/// `NAME` or `NAME=VALUE`.
pub(crate) fn has_label(labels: &Labels, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// A moment: seconds since 1970 (`1700000000`, `1700000000.5`), RFC 3339, or so long ago (`24h`, `1h30m`).
pub fn parse_moment(text: &str) -> Result<Timestamp> {
    let bad = || {
        Error::InvalidArgument(format!(
            "failed to parse value as time or duration: {text:?}: seconds, RFC 3339 or a duration are expected"
        ))
    };
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    if let Some(moment) = parse_seconds(text) {
        return Ok(moment);
    }
    let duration: SignedDuration = text.parse().map_err(|_| bad())?;
    Timestamp::now().checked_sub(duration).map_err(|_| bad())
}

fn parse_seconds(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_three_forms() {
        assert_eq!(parse_moment("1700000000").unwrap().as_second(), 1_700_000_000);
        assert_eq!(parse_moment("1700000000.000000001").unwrap().subsec_nanosecond(), 1);
        assert_eq!(parse_moment("2023-11-14T22:13:20Z").unwrap().as_second(), 1_700_000_000);
        let ago = Timestamp::now().as_second() - parse_moment("1h30m").unwrap().as_second();
        assert!((5399..=5401).contains(&ago), "{ago}");
        for bad in ["", "yesterday", "1.2.3", "99999999999999999999"] {
            assert!(parse_moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn booleans_are_single() {
        let filters = |values: &[&str]| {
            BTreeMap::from([("dangling".to_owned(), values.iter().map(|v| (*v).to_owned()).collect())])
        };
        assert_eq!(one_bool(&filters(&["true"]), "dangling").unwrap(), Some(true));
        assert_eq!(one_bool(&filters(&["0"]), "dangling").unwrap(), Some(false));
        assert!(one_bool(&filters(&["true", "false"]), "dangling").is_err());
        assert!(one_bool(&filters(&["maybe"]), "dangling").is_err());
    }
}
