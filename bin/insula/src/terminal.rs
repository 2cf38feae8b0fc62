//! The terminal of the user: raw mode, size, detach keys.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::{Context as _, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether standard input is a terminal.
pub(crate) fn input_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Rows and columns of the terminal on standard output, if it is one.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout().as_fd()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Standard input in raw mode until this is dropped. The process must not end in between without
/// dropping it: `main` exits only after the command has returned, and a panic restores as well.
#[derive(Debug)]
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Raw mode, or `None` when standard input is no terminal.
    pub(crate) fn enter() -> anyhow::Result<Option<Self>> {
        if !input_is_terminal() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("set the terminal to raw mode")?;
        restore_on_panic(before.clone());
        Ok(Some(Self(before)))
    }
}

/// What is typed is not shown, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hidden(Termios);

impl Hidden {
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("read the terminal's mode")?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &hidden).context("hide what is typed")?;
        restore_on_panic(before.clone());
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

/// With `panic = "abort"` nothing is dropped.
fn restore_on_panic(before: Termios) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // The panic is what matters.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &before);
        previous(info);
    }));
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

/// The keys that leave a container to itself: `ctrl-p,ctrl-q`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

/// What to do with input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Send these bytes.
    Forward(Vec<u8>),
    /// Send these bytes, then leave.
    Detach(Vec<u8>),
}

impl DetachKeys {
    /// Docker's syntax: single characters and `ctrl-` with a letter or one of `@[]\^_`, commas between.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
        let mut keys = Vec::new();
        for key in text.split(',') {
            keys.push(
                Self::key(key)
                    .with_context(|| format!("invalid detach keys {text:?}: unknown key {key:?}"))?,
            );
        }
        Ok(Self { keys, matched: 0 })
    }

    fn key(text: &str) -> anyhow::Result<u8> {
        match (text.strip_prefix("ctrl-"), text.as_bytes()) {
            (None, [key]) => Ok(*key),
            (Some(control), _) => match control.as_bytes() {
                [letter @ b'a'..=b'z'] => Ok(letter - b'a' + 1),
                b"@" => Ok(0),
                b"[" => Ok(27),
                b"\\" => Ok(28),
                b"]" => Ok(29),
                b"^" => Ok(30),
                b"_" => Ok(31),
                _ => bail!("ctrl- is followed by a letter or one of @[]\\^_"),
            },
            _ => bail!("a key is one character or ctrl- and one"),
        }
    }

    /// Takes what was typed. Keys that may begin the sequence are held back until it is clear.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Keys {
        let mut forward = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return Keys::Detach(forward);
                }
                continue;
            }
            forward.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                forward.push(*byte);
            }
        }
        Keys::Forward(forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        assert_eq!(DetachKeys::parse("").unwrap().keys, [16, 17]);
        assert_eq!(DetachKeys::parse("ctrl-@,a,ctrl-\\").unwrap().keys, [0, b'a', 28]);
        for bad in ["ctrl-", "ctrl-A", "ab", "a,,b", "ctrl-ab"] {
            assert!(DetachKeys::parse(bad).unwrap_err().to_string().contains("unknown key"), "{bad}");
        }
    }

    #[test]
    fn sequences_across_reads() {
        let mut keys = DetachKeys::parse("").unwrap();
        assert_eq!(keys.feed(b"ab\x10"), Keys::Forward(b"ab".to_vec()));
        assert_eq!(keys.feed(b"\x10"), Keys::Forward(b"\x10".to_vec()));
        assert_eq!(keys.feed(b"c"), Keys::Forward(b"\x10c".to_vec()));
        assert_eq!(keys.feed(b"x\x10\x11y"), Keys::Detach(b"x".to_vec()));
        let mut single = DetachKeys::parse("q").unwrap();
        assert_eq!(single.feed(b"abq"), Keys::Detach(b"ab".to_vec()));
    }
}
