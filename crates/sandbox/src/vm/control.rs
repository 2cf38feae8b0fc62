//! QEMU's control, QMP: one JSON document a line, answers and events mixed. It is believed as little as its
//! guest, which may have taken it over.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde_json::{Value, json};

use super::deadline::Deadline;
use crate::{Error, Result};

/// How long it may take to save a machine, on a host that is very busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest line.
const LARGEST: usize = 64 << 10;
/// Events are on, and memory is where the file has it.
const CAPABILITIES: [&str; 2] = ["events", "x-ignore-shared"];

/// A connection, and what was read of it and not looked at.
#[derive(Debug)]
pub(super) struct Control {
    socket: OwnedFd,
    bytes: Vec<u8>,
    greeted: bool,
    deadline: Deadline,
}

impl Control {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, bytes: Vec::new(), greeted: false, deadline: Deadline::from_now(PATIENCE) }
    }

    /// Everything that is asked from now on has to be answered by then. Begins with a greeting.
    pub(super) fn until(&mut self, deadline: Deadline) -> Result<&mut Self> {
        self.deadline = deadline;
        if !self.greeted {
            if self.next()?.get("QMP").is_none() {
                return Err(malformed());
            }
            self.execute("qmp_capabilities", json!({}))?;
            self.greeted = true;
        }
        Ok(self)
    }

    /// Has migrations tell how they stand, and leave out memory that is in a file.
    pub(super) fn migration_capabilities(&mut self) -> Result<()> {
        let list: Vec<Value> =
            CAPABILITIES.iter().map(|name| json!({ "capability": name, "state": true })).collect();
        self.execute("migrate-set-capabilities", json!({ "capabilities": list })).map(drop)
    }

    /// Carries a command out; what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.send(command, arguments, &[])?;
        self.answer(command)
    }

    /// Hands a descriptor over under a name.
    pub(super) fn give(&mut self, name: &str, descriptor: &OwnedFd) -> Result<()> {
        self.send("getfd", json!({ "fdname": name }), &[descriptor.as_fd()])?;
        self.answer("getfd").map(drop)
    }

    fn send(&self, command: &str, arguments: Value, gift: &[std::os::fd::BorrowedFd<'_>]) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        insula_sys::socket::send_all(self.socket.as_fd(), line.as_bytes(), gift)
            .map_err(|source| Error::call("sendmsg", "QEMU's control", source))
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut line = self.next()?;
            if let Some(returned) = line.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = line.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
                return Err(Error::Machine(format!("QEMU refuses {command}: {why}")));
            }
        }
    }

    /// Waits until a migration is over.
    pub(super) fn await_migration(&mut self) -> Result<()> {
        loop {
            let line = self.next()?;
            if line.get("event").and_then(Value::as_str) != Some("MIGRATION") {
                continue;
            }
            match line.pointer("/data/status").and_then(Value::as_str) {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(Error::Machine("QEMU could not copy the machine".to_owned()));
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|_| malformed());
            }
            if self.bytes.len() > LARGEST {
                return Err(malformed());
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let late = || Error::Machine(format!("QEMU's control does not answer within {}", self.deadline));
        let time = self.deadline.left().ok_or_else(late)?;
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&time)) {
            Ok(0) => return Err(late()),
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(source) => return Err(Error::call("poll", "QEMU's control", source)),
        }
        let mut piece = [0; 4096];
        match rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut piece, RecvFlags::empty())) {
            // Reset, when it has not read all that it was told.
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(Error::Machine("QEMU ended".to_owned())),
            Ok((count, _)) => {
                self.bytes.extend_from_slice(&piece[..count]);
                Ok(())
            }
            Err(source) => Err(Error::call("recv", "QEMU's control", source)),
        }
    }
}

pub(super) fn malformed() -> Error {
    Error::Machine("QEMU's control says what is not to be understood".to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n";

    fn says(lines: &[u8]) -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(lines).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn answers_are_found_among_events() {
        let more = b"{\"event\": \"STOP\"}\n{\"return\": {}}\n{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n\
            {\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n";
        let (socket, _theirs) = says(&[GREETING, more].concat());
        let mut control = Control::new(socket);
        let control = control.until(Deadline::from_now(PATIENCE)).unwrap();
        control.execute("stop", json!({})).unwrap();
        control.await_migration().unwrap();
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let (socket, theirs) =
            says(&[GREETING, b"{\"error\": {\"desc\": \"no such fd\"}}\nnonsense\n"].concat());
        let mut control = Control::new(socket);
        let control = control.until(Deadline::from_now(PATIENCE)).unwrap();
        assert_eq!(
            control.execute("getfd", json!({})).unwrap_err().to_string(),
            "QEMU refuses getfd: no such fd"
        );
        assert!(control.execute("stop", json!({})).unwrap_err().to_string().contains("not to be understood"));
        drop(theirs);
        assert!(control.await_migration().unwrap_err().to_string().contains("ended"));
        let (socket, _theirs) = says(&vec![b' '; LARGEST + 10]);
        assert!(Control::new(socket).until(Deadline::from_now(PATIENCE)).is_err());
    }
}
