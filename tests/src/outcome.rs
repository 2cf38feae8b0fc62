//! What a command did.

use std::process::{Command, Stdio};

/// Exit code and output, and the command itself for the message when they are not as expected.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub command: String,
    /// 128 + signal for a command that a signal ended.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs a command with `input`.
    pub fn of(command: &mut Command, input: &[u8]) -> Self {
        let text = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that reads nothing closes its end; that is its right.
        let writer = std::thread::spawn(move || drop(std::io::Write::write_all(&mut stdin, &input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        Self {
            command: text,
            code: output.status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output without the space around it, of a command that succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.exits(0).stdout.trim()
    }

    #[track_caller]
    pub fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// Fails with `code` and a message on standard error that has all of `words`.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) -> &Self {
        self.exits(code);
        for word in words {
            assert!(self.stderr.contains(word), "the message does not have {word:?}: {self}");
        }
        self
    }

    /// Standard output has all of `words`.
    #[track_caller]
    pub fn shows(&self, words: &[&str]) -> &Self {
        self.exits(0);
        for word in words {
            assert!(self.stdout.contains(word), "the output does not have {word:?}: {self}");
        }
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "\n{command}\nexit {code}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}
