//! The stream to the agent: requests and their answers, events, and the standard streams of every process.

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};

use insula_proto::channel::{ChannelError, ChannelFrame, ChannelReader, Kind, put_frame};
use insula_proto::{Call, Outcome, Reply, Request};
use insula_spec::plan::StdioPlan;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::streams::GuestStreams;
use crate::{Error, Event, Result, Streams};

/// Bytes taken at once, and how often in a row: a guest that sends without end does not keep the monitor
/// from its work.
const PIECE: usize = 64 << 10;

/// Answers and events that nobody asked for are bounded by what one may have: this many processes.
const MOST_PROCESSES: usize = 4096;

/// Bytes that wait for the channel at which answers of the name server are dropped.
const MOST_WAITING: usize = 256 << 10;

/// A question of the guest to its name server, or the answer to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// In the channel.
    pub(super) number: u32,
    /// It came by TCP.
    pub(super) long: bool,
    /// A message of DNS; an answer without one is none.
    pub(super) message: Vec<u8>,
}

/// Our side of the channel.
#[derive(Debug, Default)]
pub(super) struct Link {
    reader: ChannelReader,
    /// Frames that the channel did not take yet.
    out: Vec<u8>,
    /// Processes in the guest; the first one has no id.
    processes: Vec<Process>,
    last: u32,
    /// The answer to the last request.
    answer: Option<(u64, Outcome)>,
    /// The guest's kernel, once the agent has said its first word.
    hello: Option<String>,
    events: VecDeque<Event>,
    /// To the name server.
    questions: Vec<Query>,
}

#[derive(Debug)]
struct Process {
    exec: Option<String>,
    streams: GuestStreams,
    /// Its code, until everything that it wrote was passed on.
    exit: Option<i32>,
}

impl Link {
    /// Sends a request; returns its number.
    pub(super) fn ask(&mut self, call: Call) -> u32 {
        self.last += 1;
        self.send(self.last, call);
        self.last
    }

    /// Sends a request that starts a process. Its streams are there before its answer.
    pub(super) fn ask_process(
        &mut self,
        exec: Option<String>,
        stdio: &StdioPlan,
        call: Call,
    ) -> Result<(u32, Streams)> {
        if self.processes.len() >= MOST_PROCESSES {
            return Err(Error::Invalid(format!("a machine runs at most {MOST_PROCESSES} processes of exec")));
        }
        self.last += 1;
        let (streams, ends) = GuestStreams::new(self.last, stdio)?;
        self.processes.push(Process { exec, streams, exit: None });
        self.send(self.last, call);
        Ok((self.last, ends))
    }

    /// A process was not started after all.
    pub(super) fn forget(&mut self, number: u32) {
        self.processes.retain(|process| process.streams.number() != number);
        // It may be all that the end of the first one waited for.
        self.settle();
    }

    fn send(&mut self, id: u32, call: Call) {
        let request = Request::new(id.into(), call);
        let bytes = prost_bytes(&request);
        put_frame(&mut self.out, Kind::Request, 0, &bytes);
        self.answer = None;
    }

    /// The answer to request `id`, once it is there.
    pub(super) fn answer(&mut self, id: u32) -> Option<Outcome> {
        self.answer.take_if(|(answered, _)| *answered == u64::from(id)).map(|(_, outcome)| outcome)
    }

    pub(super) fn hello(&self) -> Option<&str> {
        self.hello.as_deref()
    }

    pub(super) fn runs(&self, exec: &str) -> bool {
        self.processes.iter().any(|process| process.exec.as_deref() == Some(exec))
    }

    /// Takes what the channel has and passes on what can be; false at its end.
    pub(super) fn serve(&mut self, channel: BorrowedFd<'_>) -> Result<bool> {
        let mut piece = vec![0; PIECE];
        let open =
            match rustix::io::retry_on_intr(|| rustix::net::recv(channel, &mut piece, RecvFlags::DONTWAIT)) {
                Ok((0, _)) => false,
                Ok((count, _)) => {
                    self.reader.push(&piece[..count]);
                    while let Some(frame) = self.reader.pop()? {
                        self.take(frame)?;
                    }
                    true
                }
                Err(Errno::AGAIN) => true,
                Err(_) => false,
            };
        self.move_on(channel)?;
        Ok(open)
    }

    /// Passes on what can be, both ways.
    pub(super) fn move_on(&mut self, channel: BorrowedFd<'_>) -> Result<()> {
        for process in &mut self.processes {
            process.streams.pump(&mut self.out)?;
        }
        let mut sent = 0;
        while sent < self.out.len() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::io::retry_on_intr(|| rustix::net::send(channel, &self.out[sent..], flags)) {
                Ok(count) => sent += count,
                // Its end is read, too.
                Err(_) => break,
            }
        }
        self.out.drain(..sent);
        self.settle();
        Ok(())
    }

    fn take(&mut self, frame: ChannelFrame) -> Result<(), Error> {
        let stream = frame.stream;
        match frame.kind {
            Kind::Hello => self.hello = Some(frame.hello()?),
            Kind::Reply => self.reply(&frame.payload)?,
            Kind::Request | Kind::Open => {
                return Err(ChannelError::Malformed("a request of the guest").into());
            }
            Kind::Query | Kind::LongQuery => self.questions.push(Query {
                number: stream,
                long: frame.kind == Kind::LongQuery,
                message: frame.payload,
            }),
            Kind::Data | Kind::Credit | Kind::End => {
                let found = self.processes.iter_mut().find(|process| process.streams.number() == stream);
                // One that was given up meanwhile.
                let Some(process) = found else { return Ok(()) };
                match frame.kind {
                    Kind::Data => process.streams.received(&frame.payload)?,
                    Kind::Credit => process.streams.credited(frame.credit()?)?,
                    _ => process.streams.end(),
                }
            }
        }
        Ok(())
    }

    fn reply(&mut self, payload: &[u8]) -> Result<(), ChannelError> {
        let reply = parse_reply(payload)?;
        let outcome = reply.outcome.ok_or(ChannelError::Malformed("a reply"))?;
        if reply.id != 0 {
            self.answer = Some((reply.id, outcome));
            return Ok(());
        }
        match outcome {
            Outcome::Exited(exited) => self.exited(None, exited.code),
            Outcome::ExecExited(exited) => self.exited(Some(&exited.exec), exited.code),
            Outcome::Oom(_) if !self.events.contains(&Event::Oom) => self.events.push_back(Event::Oom),
            _ => {}
        }
        Ok(())
    }

    fn exited(&mut self, exec: Option<&str>, code: i32) {
        if let Some(process) = self.processes.iter_mut().find(|process| process.exec.as_deref() == exec) {
            process.exit.get_or_insert(code);
        }
    }

    /// Tells of processes whose output is complete; the first one last.
    fn settle(&mut self) {
        let over = |process: &Process| process.exit.filter(|_| process.streams.done());
        let mut rest = Vec::new();
        for process in std::mem::take(&mut self.processes) {
            match (over(&process), &process.exec) {
                (Some(code), Some(id)) => {
                    self.events.push_back(Event::ExecExited { id: id.clone(), code });
                }
                _ => rest.push(process),
            }
        }
        if let [only] = rest.as_slice()
            && let (Some(code), None) = (over(only), &only.exec)
        {
            self.events.push_back(Event::Exited { code, error: String::new() });
            rest.clear();
        }
        self.processes = rest;
    }

    /// The machine is gone: everything in it has ended with this code.
    pub(super) fn cut(&mut self, code: i32, error: &str) {
        let mut first = false;
        for process in &mut self.processes {
            process.streams.end();
            // What is under way is passed on as far as it goes.
            let _ = process.streams.pump(&mut Vec::new());
        }
        for process in std::mem::take(&mut self.processes) {
            match process.exec {
                Some(id) => {
                    self.events.push_back(Event::ExecExited { id, code: process.exit.unwrap_or(code) })
                }
                None => first = true,
            }
        }
        if first {
            self.events.push_back(Event::Exited { code, error: error.to_owned() });
        }
    }

    /// What the guest asked the name server since the last call.
    pub(super) fn questions(&mut self) -> Vec<Query> {
        std::mem::take(&mut self.questions)
    }

    /// Passes an answer of the name server on, unless the guest takes nothing: it asks again.
    pub(super) fn answer_question(&mut self, answer: &Query) {
        if self.out.len() < MOST_WAITING {
            let kind = if answer.long { Kind::LongQuery } else { Kind::Query };
            put_frame(&mut self.out, kind, answer.number, &answer.message);
        }
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Waits in `events` for what the streams can go on with.
    pub(super) fn watch(&mut self, events: &OwnedFd) -> Result<()> {
        self.processes.iter_mut().try_for_each(|process| process.streams.watch(events))
    }

    /// Whether the channel is to be waited for until it takes more.
    pub(super) fn has_more(&self) -> bool {
        !self.out.is_empty()
    }
}

fn prost_bytes(request: &Request) -> Vec<u8> {
    // A frame of the task protocol is the message with its length before it.
    insula_proto::encode(request).split_off(4)
}

fn parse_reply(payload: &[u8]) -> Result<Reply, ChannelError> {
    insula_proto::decode(payload).map_err(|_| ChannelError::Malformed("a reply"))
}

#[cfg(test)]
mod tests {
    use insula_proto::{Empty, Exited};

    use super::*;

    #[test]
    fn an_end_that_comes_while_a_process_is_asked_for_is_told_when_that_is_refused() {
        let mut link = Link::default();
        let call = || Call::Status(Empty {});
        let (first, _ends) = link.ask_process(None, &StdioPlan::default(), call()).unwrap();
        let (late, _ends) = link.ask_process(Some("x".to_owned()), &StdioPlan::default(), call()).unwrap();
        let exited = Reply { id: 0, outcome: Some(Outcome::Exited(Exited { code: 5, ..Exited::default() })) };
        let payload = insula_proto::encode(&exited).split_off(4);
        link.take(ChannelFrame { kind: Kind::End, stream: first, payload: Vec::new() }).unwrap();
        link.take(ChannelFrame { kind: Kind::Reply, stream: 0, payload }).unwrap();
        let (ours, _theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        link.move_on(std::os::fd::AsFd::as_fd(&ours)).unwrap();
        assert_eq!(link.next_event(), None);
        link.forget(late);
        assert_eq!(link.next_event(), Some(Event::Exited { code: 5, error: String::new() }));
    }
}
