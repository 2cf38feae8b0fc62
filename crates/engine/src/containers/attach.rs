//! Attach: a client's connection goes to the monitor, and waits here until there is one.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use insula_proto::{Attach, Attachment, Call};

use super::row::Phase;
use super::start::not_running;
use super::{AttachOptions, AttachTarget, AttachedStream};
use crate::logs::{LogOptions, LogStream, Stream};
use crate::{Engine, Error, Result, blocking};

/// What detaches a client from a terminal unless it says otherwise.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

impl Engine {
    /// The container to attach to, before the client is told that its connection is taken over.
    pub async fn attach_target(&self, reference: &str) -> Result<AttachTarget> {
        let container = self.find(reference)?;
        if container.state().paused {
            return Err(Error::Conflict(format!(
                "Container {} is paused, unpause the container before attach.",
                container.id
            )));
        }
        if container.state().restarting.is_some() {
            return Err(Error::Conflict(format!(
                "Container {} is restarting, wait until the container is running",
                container.id
            )));
        }
        let row = container.row();
        Ok(AttachTarget { id: row.id.clone(), tty: row.config.tty })
    }

    /// Hands a client's connection to the container; to one that has not started yet when it
    /// starts. Returns at once.
    pub async fn attach(
        &self,
        reference: &str,
        options: AttachOptions,
        stream: AttachedStream,
    ) -> Result<()> {
        let container = self.find(reference)?;
        let row = container.row();
        let attachment = attachment(&options, row.config.tty, row.config.open_stdin, stream.already_read)?;
        let descriptor = stream.descriptor;
        if options.logs {
            self.replay(reference, &options, descriptor.as_fd().try_clone_to_owned()).await?;
        }
        if !options.stream {
            return Ok(());
        }
        self.publish(&row, "attach", &[]);
        let task = {
            let mut state = container.state();
            match (&state.row().phase, state.task.clone()) {
                (Phase::Running { .. }, Some(task)) => task,
                (Phase::Removing, _) => {
                    return Err(Error::Conflict(format!("container {} is being removed", container.id)));
                }
                _ => {
                    state.attachments.push((attachment, descriptor));
                    return Ok(());
                }
            }
        };
        let call = Attach { exec: String::new(), attachment: Some(attachment) };
        let attached = task.call(Call::Attach(call), &[descriptor]).await;
        attached.map(drop).map_err(|error| not_running(error, &container.id))
    }

    /// What is in the log, in the form that the client expects.
    async fn replay(
        &self,
        reference: &str,
        options: &AttachOptions,
        socket: std::io::Result<OwnedFd>,
    ) -> Result<()> {
        let source = self.log_source(reference)?;
        let (Some((path, format)), Ok(socket)) = (source.file, socket) else { return Ok(()) };
        let wanted = LogOptions { stdout: options.stdout, stderr: options.stderr, ..LogOptions::default() };
        let mut log = LogStream::open(&path, format, wanted, Box::pin(std::future::ready(())))
            .await
            .map_err(|e| Error::io("read", &path, e))?;
        let mut socket = UnixStream::from(socket);
        while let Some(lines) = log.next().await {
            let lines = lines.map_err(|e| Error::io("read", &path, e))?;
            let mut bytes = Vec::new();
            for line in &lines {
                if !source.tty {
                    let number = if line.stream == Stream::Stdout { 1 } else { 2 };
                    bytes.extend_from_slice(&[number, 0, 0, 0]);
                    bytes.extend_from_slice(&(line.bytes.len() as u32).to_be_bytes());
                }
                bytes.extend_from_slice(&line.bytes);
            }
            let sent = blocking(move || Ok(write_all(socket, &bytes))).await?;
            match sent {
                Ok(same) => socket = same,
                // The client is gone; the monitor will see it too.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The socket does not block: it is shared with what reads from it.
fn write_all(mut socket: UnixStream, mut bytes: &[u8]) -> std::io::Result<UnixStream> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut poll = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
                rustix::event::poll(&mut poll, None)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(socket)
}

fn attachment(
    options: &AttachOptions,
    tty: bool,
    open_stdin: bool,
    already_read: Vec<u8>,
) -> Result<Attachment> {
    Ok(Attachment {
        stdin: options.stdin && open_stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        multiplexed: !tty,
        already_read,
        detach_keys: detach_keys(options.detach_keys.as_deref(), tty)?,
    })
}

/// Bytes of `ctrl-p,ctrl-q`; a client without a terminal cannot detach.
pub(crate) fn detach_keys(text: Option<&str>, tty: bool) -> Result<Vec<u8>> {
    let text = match text {
        None | Some("") => DETACH_KEYS,
        Some(text) => text,
    };
    let wrong = || Error::InvalidArgument(format!("Invalid detach keys ({text}) provided"));
    let keys = text.split(',').map(|key| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
        (Some(letter), _) => match letter.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Some(letter & 0x1f),
            _ => None,
        },
        (None, [key]) if key.is_ascii() => Some(*key),
        _ => None,
    });
    let keys: Vec<u8> = keys.collect::<Option<_>>().ok_or_else(wrong)?;
    Ok(if tty { keys } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_control_codes_or_characters() {
        assert_eq!(detach_keys(None, true).unwrap(), [16, 17]);
        assert_eq!(detach_keys(Some("ctrl-a,x,ctrl-["), true).unwrap(), [1, b'x', 27]);
        assert!(detach_keys(None, false).unwrap().is_empty());
        for bad in ["ctrl-", "ctrl-AB", "ab", "é", "a,,b"] {
            assert!(detach_keys(Some(bad), true).is_err(), "{bad}");
        }
    }
}
