//! The conformance suite of walls (`crates/sandbox/tests/conformance.rs`) against each: those that run on every host,
//! and our own machine where `/dev/kvm` runs kernels.

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

#[test]
fn the_own_machine_conforms() {
    if let Some(why) = guest::missing() {
        return insula_tests::skip("tcg", why);
    }
    let suite = std::fs::read(programs::build().test("conformance")).unwrap();
    let script = "export INSULA_TEST_WALL=kvm INSULA_TEST_KERNEL=/ INSULA_TEST_PARTS=/usr/bin
/tests/conformance </dev/null 2>&1; echo \"conformance ended with $?\"
";
    let outcome = guest::run_walls_with_kvm(script, &[("/tests/conformance", &suite)]);
    let console = &outcome.stdout;
    assert!(console.contains("conformance ended with 0"), "{outcome}");
    assert_eq!(console.matches("conforms: kvm: ").count(), CASES, "{outcome}");
    assert!(console.contains("GUEST-ENDS"), "the guest did not end well: {outcome}");
}
