//! Guests that do not do what they should: each has another first program in the agent's place.

use insula_tests::{Outcome, text};

use crate::walls::prepared_daemon;

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// Of an ELF file and its one segment.
const HEADS: usize = 64 + 56;
/// write(1, the text, its length): the first 24 bytes, with two places to fill.
const WRITE: [u8; 24] = *b"\xb8\x01\0\0\0\xbf\x01\0\0\0\x48\x8d\x35\0\0\0\0\xba\0\0\0\0\x0f\x05";
/// exit(3)
const END: &[u8] = b"\xb8\x3c\0\0\0\xbf\x03\0\0\0\x0f\x05";
/// pause(), again and again
const WAIT: &[u8] = b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7";
/// Back to the begin
const AGAIN: &[u8] = b"\xeb\xe6";

/// A static program that prints `text` and goes on with `then` (elf(5)).
fn program(text: &str, then: &[u8]) -> Vec<u8> {
    let mut code = [&WRITE[..], then].concat();
    let behind = (code.len() - 17) as u32;
    code[13..17].copy_from_slice(&behind.to_le_bytes());
    code[18..22].copy_from_slice(&(text.len() as u32).to_le_bytes());
    code.extend_from_slice(text.as_bytes());
    let size = (HEADS + code.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [BASE + HEADS as u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; sizes and numbers of heads.
    file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0");
    // To be loaded, readable and executable.
    file.extend(b"\x01\0\0\0\x05\0\0\0");
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    [file, code].concat()
}

/// What becomes of a container whose guest starts `program` first, and may take 15 seconds for its first word.
fn run_with_agent(program: &[u8]) -> Option<Outcome> {
    let daemon = prepared_daemon(|daemon| {
        let path = daemon.folder().join("agent");
        std::fs::write(&path, program).unwrap();
        ["--vm-templates", "off", "--vm-boot-timeout", "15", "--agent", text(&path)]
            .map(str::to_owned)
            .to_vec()
    })?;
    let run = ["run", "--name", "box", "--isolation", "vm", "--network", "none", "-m", "64m"];
    let outcome = daemon.insula(&[&run[..], &["busybox", "true"]].concat());
    assert_eq!(outcome.code, 125, "{outcome}");
    // Nothing of it is left, and the daemon goes on.
    assert_eq!(daemon.insula(&["inspect", "-f", "{{.State.Running}}", "box"]).ok(), "false");
    daemon.insula(&["rm", "box"]).exits(0);
    Some(outcome)
}

#[test]
fn an_agent_that_never_answers() {
    let Some(outcome) = run_with_agent(&program("hostile: no more\n", WAIT)) else { return };
    assert!(outcome.stderr.contains("did not answer within 15 s of its start; its console"), "{outcome}");
}

#[test]
fn an_agent_that_prints_without_end() {
    let Some(outcome) = run_with_agent(&program("hostile: again\n", AGAIN)) else { return };
    assert!(outcome.stderr.contains("did not answer within 15 s of its start; its console"), "{outcome}");
    assert!(outcome.stderr.len() < 16 << 10, "{outcome}");
}

#[test]
fn an_agent_that_ends() {
    let Some(outcome) = run_with_agent(&program("hostile: farewell\n", END)) else { return };
    let late = outcome.stderr.contains("did not answer within 15 s");
    // The kernel says what it thinks of that.
    assert!(late || outcome.stderr.contains("Attempted to kill init"), "{outcome}");
}

#[test]
fn a_machine_that_cannot_be_made_says_why() {
    let Some(daemon) = crate::walls::daemon_with(&["--vm-templates", "off"]) else { return };
    // More than a processor can address.
    let run = ["run", "--rm", "--isolation", "vm", "--network", "none", "-m", "1000t", "busybox", "true"];
    let outcome = daemon.insula(&run);
    outcome.fails(125, &["its console ends with", "memory"]);
}
