//! The conformance suite of walls (`crates/sandbox/tests/conformance.rs`) against those that run on every host.

use std::process::Command;

use insula_tests::{Outcome, guest, is_root, program};

use crate::programs;

/// How many cases the suite has.
const CASES: usize = 4;

#[test]
fn namespaces_and_the_emulator_conform() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    if !is_root() {
        return insula_tests::skip("root", "walls need it");
    }
    let programs = programs::build();
    for wall in ["namespaces", "qemu"] {
        let mut suite = Command::new(programs.test("conformance"));
        suite.env("INSULA_TEST_WALL", wall).env("INSULA_TEST_KERNEL", guest::kernel_folder());
        suite.env("INSULA_TEST_PARTS", program("insula-agent").parent().unwrap());
        let outcome = Outcome::of(&mut suite, b"");
        assert_eq!(outcome.ok().matches("conforms: ").count(), CASES, "{outcome}");
    }
}
