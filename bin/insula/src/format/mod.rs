//! What commands show: tables, Go templates, JSON, ages and sizes.

pub(crate) mod ago;
pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod ports;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod typed;

/// The first 12 digits of an id, without its algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

/// At most `width` characters, the last of which is an ellipsis if some were cut.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// `text` in double quotes, as Go writes a string literal.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// `a=1,b=2`.
pub(crate) fn labels(labels: &insula_models::Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// `1.5MiB`, `512KiB`, `0B`: powers of 1024 and four significant digits, as `stats` prints memory.
pub(crate) fn binary_size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 4)
}

/// `1.45kB`: powers of 1000 and three significant digits, as `stats` prints I/O.
pub(crate) fn decimal_size(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 3)
}

/// Go's `%.Ng` of the value in its unit.
fn scaled(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = if value < 1.0 { 1 } else { value.log10().floor() as usize + 1 };
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_quoted() {
        assert_eq!(ellipsis("12345678901234567890", 20), "12345678901234567890");
        assert_eq!(ellipsis("123456789012345678901", 20), "1234567890123456789…");
        assert_eq!(quote("a \"b\"\n\u{1}"), r#""a \"b\"\n\x01""#);
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("abc"), "abc");
    }

    #[test]
    fn sizes_read_as_stats_prints_them() {
        assert_eq!(binary_size(0.0), "0B");
        assert_eq!(binary_size(1536.0), "1.5KiB");
        assert_eq!(binary_size(25.0 * 1024.0 * 1024.0 * 1024.0), "25GiB");
        assert_eq!(binary_size(1_234_567.0), "1.177MiB");
        assert_eq!(decimal_size(1450.0), "1.45kB");
        assert_eq!(decimal_size(90.0), "90B");
    }
}
