//! Names: what is allowed, and what a container gets that was given none.

use crate::{Error, Result};

const MOODS: [&str; 64] = [
    "amber", "ample", "apt", "blithe", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid",
    "cheery", "clever", "cosy", "crisp", "curious", "daring", "deft", "eager", "earnest", "fair", "fleet",
    "fond", "frank", "gentle", "glad", "golden", "grand", "hardy", "hearty", "humble", "jolly", "keen",
    "kind", "lively", "lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble",
    "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "rapid", "serene", "sharp", "silver",
    "snug", "sober", "steady", "sunny", "swift", "tidy", "vivid", "warm", "witty",
];

/// Islands, every one.
const ISLANDS: [&str; 64] = [
    "aegina",
    "anglesey",
    "aran",
    "azores",
    "bali",
    "barra",
    "bornholm",
    "capri",
    "chios",
    "corfu",
    "corsica",
    "crete",
    "cyprus",
    "delos",
    "elba",
    "faroe",
    "flores",
    "fyn",
    "gozo",
    "gotland",
    "guernsey",
    "hvar",
    "ibiza",
    "iona",
    "ischia",
    "islay",
    "jersey",
    "jura",
    "kauai",
    "kos",
    "lemnos",
    "lesbos",
    "lofoten",
    "madeira",
    "malta",
    "maui",
    "menorca",
    "milos",
    "mull",
    "mykonos",
    "naxos",
    "oahu",
    "oland",
    "orkney",
    "paros",
    "patmos",
    "procida",
    "rhodes",
    "rugen",
    "samos",
    "sardinia",
    "sark",
    "shetland",
    "sicily",
    "skye",
    "sylt",
    "tasmania",
    "thasos",
    "tinos",
    "tiree",
    "tobago",
    "unst",
    "usedom",
    "zakynthos",
];

/// Checks a name as Docker does.
pub(crate) fn check(name: &str) -> Result<&str> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let valid = name.len() > 1
        && name.len() <= 255
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(sign);
    if valid {
        Ok(name)
    } else {
        Err(Error::InvalidArgument(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )))
    }
}

/// A name that is not taken: two words, and a number if need be.
pub(super) fn random(taken: impl Fn(&str) -> bool) -> String {
    for attempt in 0..8 {
        let digits = insula_base::random_hex(3);
        let number = u32::from_str_radix(&digits, 16).unwrap_or_default() as usize;
        let mut name = format!("{}_{}", MOODS[number % 64], ISLANDS[number / 64 % 64]);
        if attempt > 3 {
            name.push_str(&digits);
        }
        if !taken(&name) {
            return name;
        }
    }
    insula_base::random_hex(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_docker_does() {
        assert_eq!(check("/web.1_a-b").unwrap(), "web.1_a-b");
        for name in ["", "a", "/", "-ab", "a b", "a/b", "é1", &"a".repeat(256)] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn random_names_are_valid_and_free() {
        let words: std::collections::HashSet<_> = MOODS.iter().chain(&ISLANDS).collect();
        assert_eq!(words.len(), 128);
        let name = random(|_| false);
        assert!(check(&name).is_ok() && name.contains('_'), "{name}");
        assert!(!random(|name| name.contains('_')).contains('_'));
    }
}
