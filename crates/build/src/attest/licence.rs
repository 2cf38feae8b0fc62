//! What packages say of their licences, as far as it is an expression of SPDX.

use spdx::{Expression, ParseMode};

/// Nothing is claimed (SPDX 2.3, 7.15).
pub(super) const NOASSERTION: &str = "NOASSERTION";
/// Longer texts are licences themselves.
const LONGEST: usize = 1024;

/// What may stand where an expression is expected; everything else is left to who reads the package.
pub(super) fn expression(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() || text.len() > LONGEST {
        return None;
    }
    // Names that SPDX does not know would have to be declared as licences of the document's own.
    Expression::parse_mode(text, ParseMode::STRICT).ok().map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_expressions_are_taken_over() {
        for known in ["MIT", "GPL-2.0-only AND (MIT OR Apache-2.0)", " BSD-3-Clause "] {
            assert_eq!(expression(known).as_deref(), Some(known.trim()));
        }
        for text in ["", "MIT License", "GPL", "custom", "MIT, BSD", "MIT OR"] {
            assert_eq!(expression(text), None, "{text}");
        }
    }
}
