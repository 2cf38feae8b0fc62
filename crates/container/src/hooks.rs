//! Hooks of a bundle: programs that read the container's state: runtime specification, "POSIX-platform Hooks".

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use insula_spec::bundle::State;
use insula_spec::bundle::document::Hook;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{Context, Error, Result};

/// Of what a hook that fails says, this much is repeated.
const LOUDEST: u64 = 1000;

/// Runs hooks of one phase one after the other; the first that fails is the last.
pub fn run_all(phase: &str, hooks: &[Hook], state: &State) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(number, hook)| {
        run(hook, state).map_err(|error| Error::Hook {
            hook: format!("hooks.{phase}[{number}]"),
            problem: insula_base::chain(&error),
        })
    })
}

fn run(hook: &Hook, state: &State) -> Result<()> {
    let text = serde_json::to_vec(state).map_err(std::io::Error::from).context("write", "the state")?;
    let mut input = memory("state")?;
    input.write_all(&text).context("write", "the state")?;
    input.rewind().context("lseek", "the state")?;
    let mut errors = memory("errors")?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.as_deref().unwrap_or_default().split_first() {
        command.arg0(name).args(rest);
    }
    let environment = hook.env.iter().flatten().filter_map(|entry| entry.split_once('='));
    command.env_clear().envs(environment);
    command.stdin(input).stdout(Stdio::null());
    command.stderr(errors.try_clone().context("dup", "a hook's errors")?);
    // The builder has none, so that modes are meant as they are written.
    let none = rustix::process::umask(Mode::from_raw_mode(0o022));
    let spawned = command.spawn();
    rustix::process::umask(none);
    let mut child = spawned.context("execute", &hook.path)?;
    if !ends_in_time(&child, hook.timeout)? {
        // It may end right now; then there is nothing to kill.
        let _ = child.kill();
        child.wait().context("waitpid", &hook.path)?;
        let seconds = hook.timeout.unwrap_or(0);
        return Err(Error::Invalid(format!("{} did not end within {seconds} s", hook.path)));
    }
    let status = child.wait().context("waitpid", &hook.path)?;
    if status.success() {
        return Ok(());
    }
    errors.rewind().context("lseek", "a hook's errors")?;
    let mut said = Vec::new();
    errors.take(LOUDEST).read_to_end(&mut said).context("read", "a hook's errors")?;
    let said = String::from_utf8_lossy(&said);
    Err(Error::Invalid(format!("{}: {status}: {}", hook.path, said.trim())))
}

fn memory(name: &str) -> Result<File> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from).context("memfd_create", name)
}

fn ends_in_time(child: &std::process::Child, timeout: Option<u32>) -> Result<bool> {
    let Some(seconds) = timeout else { return Ok(true) };
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Error::Lost)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open", "a hook")?;
    let limit = Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
    loop {
        let mut poll = [PollFd::new(&pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll", "for a hook"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use insula_spec::bundle::Status;

    use super::*;

    fn state() -> State {
        State {
            oci_version: "1.3.0".into(),
            id: "box".into(),
            status: Status::Creating,
            pid: 7,
            bundle: "/bundle".into(),
            annotations: BTreeMap::new(),
        }
    }

    fn shell(script: &str, timeout: Option<u32>) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: Some(vec!["sh".into(), "-c".into(), script.into()]),
            env: Some(vec!["NAME=value".into()]),
            timeout,
        }
    }

    #[test]
    fn a_hook_reads_the_state_and_has_only_its_own_environment() {
        let script = r#"test "$NAME" = value && test -z "$CARGO_MANIFEST_DIR" && grep -q '"status":"creating","pid":7'"#;
        run_all("prestart", &[shell(script, Some(60))], &state()).unwrap();
    }

    #[test]
    fn what_a_failing_hook_says_is_repeated_and_nothing_follows() {
        let error =
            run_all("prestart", &[shell("echo no >&2; exit 3", None), shell("kill $PPID", None)], &state());
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "hooks.prestart[0]: /bin/sh: exit status: 3: no");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_ended() {
        let error = run_all("poststop", &[shell("exec sleep 1000", Some(1))], &state()).unwrap_err();
        assert_eq!(error.to_string(), "hooks.poststop[0]: /bin/sh did not end within 1 s");
    }
}
