//! `--filter NAME=VALUE`.

use insula_client::Filters;

use crate::usage::bad_flag;

/// Filters from their flags.
pub(crate) fn parse(flags: &[String]) -> anyhow::Result<Filters> {
    let mut filters = Filters::default();
    for flag in flags {
        match flag.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                filters.add(&name.trim().to_ascii_lowercase(), value.trim());
            }
            _ => return Err(bad_flag("--filter", flag, "bad format of filter (expected NAME=VALUE)")),
        }
    }
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_name_are_kept_together() {
        let of = |flags: &[&str]| parse(&flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["Label=a=b", "label=c"]).unwrap().to_json(), r#"{"label":["a=b","c"]}"#);
        for bad in ["status", "=x", ""] {
            assert!(of(&[bad]).unwrap_err().to_string().contains("NAME=VALUE"), "{bad}");
        }
    }
}
