//! What we want of a kernel's configuration, and whether we got it.

/// Our wishes, as `make allnoconfig` takes them (Documentation/kbuild/kconfig.rst, `KCONFIG_ALLCONFIG`).
pub(super) const WISHES: &str = include_str!("guest.config");

/// The wishes that a finished configuration does not fulfil: a name that the kernel does not know any more, or one
/// that needs something else. `make` drops those without a word.
pub(super) fn unfulfilled(wishes: &str, finished: &str) -> Vec<String> {
    let is_set = |symbol: &str| {
        finished.lines().any(|line| line.strip_prefix(symbol).is_some_and(|rest| rest.starts_with('=')))
    };
    let fulfilled = |wish: &str| match unwanted(wish) {
        Some(symbol) => !is_set(symbol),
        None => finished.lines().any(|line| line == wish),
    };
    let wishes = wishes.lines().map(str::trim).filter(|line| is_wish(line));
    wishes.filter(|wish| !fulfilled(wish)).map(str::to_owned).collect()
}

fn is_wish(line: &str) -> bool {
    line.starts_with("CONFIG_") || unwanted(line).is_some()
}

/// The symbol that a line wants off.
fn unwanted(line: &str) -> Option<&str> {
    let commented = || line.strip_prefix("# ")?.strip_suffix(" is not set");
    line.strip_suffix("=n").or_else(commented).filter(|symbol| symbol.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told() {
        let wishes =
            "# Why so.\nCONFIG_A=y\nCONFIG_NAME=\"x\"\nCONFIG_GONE=y\nCONFIG_B=n\n# CONFIG_C is not set\n";
        let finished = "CONFIG_A=y\nCONFIG_NAME=\"x\"\n# CONFIG_GONE is not set\nCONFIG_AB=y\n";
        assert_eq!(unfulfilled(wishes, finished), ["CONFIG_GONE=y"]);
        let finished = "CONFIG_A=m\nCONFIG_NAME=\"x\"\nCONFIG_GONE=y\nCONFIG_B=y\nCONFIG_C=m\n";
        assert_eq!(unfulfilled(wishes, finished), ["CONFIG_A=y", "CONFIG_B=n", "# CONFIG_C is not set"]);
    }

    #[test]
    fn each_wish_is_there_once_and_nothing_is_a_module() {
        let mut symbols: Vec<&str> = WISHES
            .lines()
            .filter(|line| is_wish(line))
            .map(|line| unwanted(line).unwrap_or_else(|| line.split('=').next().unwrap_or_default()))
            .collect();
        let count = symbols.len();
        symbols.sort_unstable();
        symbols.dedup();
        assert_eq!(symbols.len(), count);
        assert!(!WISHES.lines().any(|line| line.ends_with("=m")));
        // What `insula kernel use` looks for, by what makes it.
        for needed in ["VIRTIO_MMIO", "VIRTIO_CONSOLE", "VIRTIO_FS", "VIRTIO_NET", "PVH"] {
            assert!(WISHES.lines().any(|line| line == format!("CONFIG_{needed}=y")), "{needed}");
        }
    }
}
