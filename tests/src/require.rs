//! What a test needs that not every machine has.

/// Whether this process may do what root may.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a test is skipped for want of `need`.
///
/// # Panics
/// When `INSULA_TEST_REQUIRE` lists `need`: in CI a skip is a failure.
pub fn skip(need: &str, why: &str) {
    let required = std::env::var("INSULA_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == need), "{need} is required: {why}");
    eprintln!("skipped: needs {need}: {why}");
}

/// A daemon (`daemon!(absent)`: one that is not started), or the end of the test where there is no root.
#[macro_export]
macro_rules! daemon {
    () => {
        $crate::daemon!(start)
    };
    ($how:ident) => {
        if $crate::is_root() {
            $crate::Daemon::$how()
        } else {
            $crate::skip("root", "the daemon makes namespaces, cgroups and networks");
            return;
        }
    };
}
