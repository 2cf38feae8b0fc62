//! Between the channel and the monitor: what has descriptors on one side and numbers on the other.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use insula_host::netlink;
use insula_proto::channel::{
    CHANNEL_VERSION, ChannelFrame, ChannelReader, Kind, LARGEST_PIECE, Window, put_frame,
};
use insula_proto::{Attachment, Call, Done, Empty, Failed, FrameReader, Outcome, Reply, Request};
use insula_spec::machine::{CardsChange, GuestPlan};
use insula_sys::process;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::cards::Devices;
use crate::error::{Context, Error, Result};
use crate::furnish::Furnished;
use crate::names::Names;
use crate::{files, furnish, machine, processes, tenant};

const SIGCHLD: i32 = 17;
/// Bytes that wait for the channel at most, beside answers: who reads streams stops then.
const MOST_WAITING: usize = 256 << 10;

/// Everything that the first process holds, or the one of a container of several.
#[derive(Debug)]
pub(crate) struct Bridge {
    channel: OwnedFd,
    /// The host has closed its end.
    left: bool,
    /// Until its container has ended: the host ends the machine then, or closes the channel.
    monitor: Option<OwnedFd>,
    children: OwnedFd,
    reader: ChannelReader,
    replies: FrameReader,
    /// Requests that the monitor has not answered.
    asked: Vec<u64>,
    /// What the channel did not take yet.
    out: Vec<u8>,
    streams: Vec<Stream>,
    furnished: Furnished,
    /// Where a machine has several containers: what this one has for itself.
    own: Option<Own>,
}

/// What a container of several has in place of a machine.
#[derive(Debug)]
struct Own {
    /// Until they are mounted.
    files: Option<OwnedFd>,
    devices: Devices,
    /// The container's first process, once there is one.
    first: Option<i32>,
}

/// Its request for the end of a container that nobody wants any more.
const LAST: u64 = u64::MAX;

/// The standard streams of one process: a client of the monitor, and a number in the channel.
#[derive(Debug)]
struct Stream {
    number: u32,
    socket: OwnedFd,
    window: Window,
    /// Input that the monitor did not take yet; at most a window.
    inbound: Vec<u8>,
    /// The host has said that no more input comes.
    input_ends: bool,
    /// The monitor has said that no more output comes.
    output_ended: bool,
}

impl Bridge {
    /// Greets the host.
    pub(crate) fn new(channel: OwnedFd, monitor: OwnedFd) -> Result<Self> {
        let children = process::signal_descriptor(&[SIGCHLD]).context("signalfd", "for children")?;
        let mut out = Vec::new();
        let hello = [&CHANNEL_VERSION.to_le_bytes(), machine::release()?.as_bytes()].concat();
        put_frame(&mut out, Kind::Hello, 0, &hello);
        Ok(Self {
            channel,
            monitor: Some(monitor),
            children,
            reader: ChannelReader::default(),
            replies: FrameReader::default(),
            asked: Vec::new(),
            out,
            streams: Vec::new(),
            furnished: Furnished::default(),
            left: false,
            own: None,
        })
    }

    /// As [`Bridge::new`], for a container of several.
    pub(crate) fn for_container(
        channel: OwnedFd,
        monitor: OwnedFd,
        files: OwnedFd,
        devices: Devices,
    ) -> Result<Self> {
        process::ignore_broken_pipes(true);
        rustix::io::ioctl_fionbio(&channel, true).context("ioctl FIONBIO", "the channel")?;
        let own = Some(Own { files: Some(files), devices, first: None });
        Ok(Self { own, ..Self::new(channel, monitor)? })
    }

    /// Serves as long as the machine runs; a container of several, until it has ended and the host has let it go.
    pub(crate) fn serve(mut self) -> Result<()> {
        loop {
            self.flush()?;
            if self.left && self.monitor.is_none() {
                return Ok(());
            }
            self.wait()?;
            self.reap()?;
            self.hear_host()?;
            self.hear_monitor()?;
            if let Some(names) = self.furnished.names.as_mut().filter(|_| self.out.len() < MOST_WAITING) {
                names.ask(&mut self.out);
            }
            for at in 0..self.streams.len() {
                let out = &mut self.out;
                self.streams[at].pump(out);
            }
            self.streams.retain(|stream| !stream.output_ended);
        }
    }

    fn wait(&self) -> Result<()> {
        let some = |on: bool, flags| if on { flags } else { PollFlags::empty() };
        let writing = some(!self.out.is_empty(), PollFlags::OUT);
        let mut polled = vec![PollFd::new(&self.children, PollFlags::IN)];
        if !self.left {
            polled.push(PollFd::new(&self.channel, PollFlags::IN | writing));
        }
        polled.extend(self.monitor.iter().map(|monitor| PollFd::new(monitor, PollFlags::IN)));
        let room = self.out.len() < MOST_WAITING;
        polled.extend(self.furnished.names.iter().filter(|_| room).flat_map(Names::watched));
        polled.extend(self.streams.iter().map(|stream| {
            let input = some(!stream.inbound.is_empty(), PollFlags::OUT);
            let output = some(room && stream.window.sendable() > 0, PollFlags::IN);
            PollFd::new(&stream.socket, input | output)
        }));
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
            .context("poll", "the channel")?;
        Ok(())
    }

    fn reap(&self) -> Result<()> {
        while process::take_signal(self.children.as_fd()).context("read", "a signal")?.is_some() {}
        while process::reap().context("waitpid", "for a child")?.is_some() {}
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.left {
            self.out.clear();
        }
        let mut sent = 0;
        while sent < self.out.len() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.channel, &self.out[sent..])) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                // Its end is read, too.
                Err(Errno::PIPE | Errno::CONNRESET) if self.own.is_some() => break,
                Err(error) => return Err(error).context("write", "the channel"),
            }
        }
        self.out.drain(..sent);
        Ok(())
    }

    fn hear_host(&mut self) -> Result<()> {
        if self.left {
            return Ok(());
        }
        let mut piece = vec![0; 32 << 10];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.channel, &mut piece)) {
            Ok(0) | Err(Errno::CONNRESET) if self.own.is_some() => return self.leave(),
            Ok(count) => self.reader.push(&piece[..count]),
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error).context("read", "the channel"),
        }
        while let Some(frame) = self.reader.pop()? {
            self.take(frame)?;
        }
        Ok(())
    }

    /// Nobody is there for the container any more: it ends.
    fn leave(&mut self) -> Result<()> {
        self.left = true;
        self.streams.clear();
        self.request(Request::new(LAST, Call::Destroy(Empty {})))
    }

    fn take(&mut self, frame: ChannelFrame) -> Result<()> {
        if frame.kind == Kind::Request {
            return self.request(insula_proto::decode(&frame.payload)?);
        }
        if let Kind::Query | Kind::LongQuery = frame.kind {
            match &mut self.furnished.names {
                Some(names) if frame.kind == Kind::Query => names.answer(frame.stream, &frame.payload),
                Some(names) => names.answer_long(frame.stream, &frame.payload),
                None => {}
            }
            return Ok(());
        }
        // One that has ended meanwhile.
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.number == frame.stream) else {
            return Ok(());
        };
        match frame.kind {
            Kind::Data => {
                stream.window.received(frame.stream, frame.payload.len())?;
                stream.inbound.extend_from_slice(&frame.payload);
            }
            Kind::Credit => stream.window.credited(frame.stream, frame.credit()?)?,
            Kind::End => stream.input_ends = true,
            Kind::Hello | Kind::Request | Kind::Reply | Kind::Query | Kind::LongQuery | Kind::Open => {}
        }
        Ok(())
    }

    /// What the monitor can do goes on to it, with a descriptor where there is a process to start.
    fn request(&mut self, mut request: Request) -> Result<()> {
        let mut theirs = None;
        match &mut request.call {
            Some(Call::Furnish(_) | Call::Rewire(_) | Call::Resolver(_)) => {
                let changed = match &mut self.own {
                    Some(own) => own.change(&request.call, &mut self.furnished),
                    None => self.change_machine(&request.call),
                };
                let outcome = match changed {
                    Ok(()) => Outcome::Done(Done::default()),
                    Err(error) => tenant::failed(&error),
                };
                self.answer(&Reply { id: request.id, outcome: Some(outcome) });
                return Ok(());
            }
            Some(Call::Create(call)) => {
                call.folder = folder(self.own.is_some())?;
                theirs = Some(self.open(request.id)?);
                call.attachments = vec![everything()];
            }
            Some(Call::Exec(call)) => {
                theirs = Some(self.open(request.id)?);
                call.attachments = vec![everything()];
            }
            _ => {}
        }
        let descriptors: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        request.descriptors = u32::from(theirs.is_some());
        let sent = self.monitor.as_ref().is_some_and(|monitor| {
            insula_sys::socket::send_all(monitor.as_fd(), &insula_proto::encode(&request), &descriptors)
                .is_ok()
        });
        // It ends with its container, whatever is on the way to it. What it said before is still to be read.
        if sent {
            self.asked.push(request.id)
        } else {
            self.too_late(request.id)
        }
        Ok(())
    }

    fn too_late(&mut self, id: u64) {
        let message = "the container has ended".to_owned();
        let failed = Failed { kind: insula_base::Kind::Conflict.code(), message, exit_code: 0 };
        self.answer(&Reply { id, outcome: Some(Outcome::Failed(failed)) });
    }

    /// What the machine is, besides its container.
    fn change_machine(&mut self, call: &Option<Call>) -> Result<()> {
        match call {
            Some(Call::Furnish(call)) => self.furnished = furnish::furnish(&call.plan)?,
            Some(Call::Rewire(call)) => {
                let cards = self.furnished.cards.as_ref().ok_or(Error::NoCards)?;
                cards.change(&serde_json::from_slice(&call.change)?)?;
            }
            _ if self.furnished.names.is_none() => self.furnished.names = Some(Names::new()?),
            _ => {}
        }
        Ok(())
    }

    /// Opens the stream of a request; returns the monitor's end.
    fn open(&mut self, id: u64) -> Result<OwnedFd> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .context("socketpair", "for a stream")?;
        rustix::io::ioctl_fionbio(&ours, true).context("ioctl FIONBIO", "a stream")?;
        self.streams.push(Stream {
            // The host counts in 32 bits.
            number: id as u32,
            socket: ours,
            window: Window::default(),
            inbound: Vec::new(),
            input_ends: false,
            output_ended: false,
        });
        Ok(theirs)
    }

    fn hear_monitor(&mut self) -> Result<()> {
        let Some(monitor) = &self.monitor else { return Ok(()) };
        let mut polled = [PollFd::new(monitor, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut polled, Some(&now)).unwrap_or(0) == 0 {
            return Ok(());
        }
        let mut piece = vec![0; 32 << 10];
        let (count, descriptors) = match insula_sys::socket::receive(monitor.as_fd(), &mut piece) {
            // Reset, when it has not read all that it was told.
            Ok((0, _)) | Err(Errno::CONNRESET) => {
                self.monitor = None;
                std::mem::take(&mut self.asked).into_iter().for_each(|id| self.too_late(id));
                return Ok(());
            }
            received => received.context("recvmsg", "from the monitor")?,
        };
        self.replies.push(&piece[..count], descriptors)?;
        while let Some(mut reply) = self.replies.pop::<Reply>()? {
            self.asked.retain(|asked| *asked != reply.id);
            if let (Some(own), Some(Outcome::Started(started))) = (&mut self.own, &reply.outcome) {
                // Processes of exec come later.
                own.first.get_or_insert(started.pid);
            }
            if let Some(Outcome::Processes(processes)) = &mut reply.outcome {
                processes::describe(processes);
            }
            if matches!(reply.outcome, Some(Outcome::Exited(_))) {
                // What the container wrote is on the host before the host hears of its end. As a rule it is there
                // already; to ask for no reason has the host write all that it has to its disk.
                if processes::left_pages() {
                    files::write_back(self.own.is_none());
                }
            }
            self.answer(&reply);
        }
        Ok(())
    }

    fn answer(&mut self, reply: &Reply) {
        let bytes = insula_proto::encode(reply).split_off(4);
        put_frame(&mut self.out, Kind::Reply, 0, &bytes);
    }
}

impl Own {
    fn change(&mut self, call: &Option<Call>, furnished: &mut Furnished) -> Result<()> {
        match call {
            Some(Call::Furnish(call)) => {
                let _: GuestPlan = serde_json::from_slice(&call.plan)?;
                files::mount_stream(self.files.take().ok_or(Error::NotHere)?)
            }
            Some(Call::Rewire(call)) => {
                let change: CardsChange = serde_json::from_slice(&call.change)?;
                self.devices.change(&change, self.network()?.as_fd())
            }
            _ if furnished.names.is_none() => {
                furnished.names = Some(netlink::inside(self.network()?.as_fd(), Names::new)??);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The container's network namespace.
    fn network(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/net", self.first.ok_or(Error::NoContainer)?);
        File::open(&path).context("open", path)
    }
}

impl Stream {
    fn pump(&mut self, out: &mut Vec<u8>) {
        self.pass_input(out);
        while out.len() < MOST_WAITING && self.window.sendable() > 0 && !self.output_ended {
            let mut piece = Vec::with_capacity(self.window.sendable().min(LARGEST_PIECE));
            match rustix::io::retry_on_intr(|| {
                rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut piece))
            }) {
                Ok(1..) => {
                    self.window.sent(piece.len());
                    put_frame(out, Kind::Data, self.number, &piece);
                }
                Err(Errno::AGAIN) => return,
                Ok(0) | Err(_) => {
                    put_frame(out, Kind::End, self.number, b"");
                    self.output_ended = true;
                }
            }
        }
    }

    fn pass_input(&mut self, out: &mut Vec<u8>) {
        let mut passed = 0;
        while passed < self.inbound.len() {
            match insula_sys::socket::send(self.socket.as_fd(), &self.inbound[passed..], &[]) {
                Ok(count) => passed += count,
                Err(Errno::AGAIN) => break,
                // Nobody takes it any more.
                Err(_) => passed = self.inbound.len(),
            }
        }
        self.inbound.drain(..passed);
        self.window.passed(out, self.number, passed);
        if self.input_ends && self.inbound.is_empty() {
            // Again and again does no harm.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
            self.input_ends = false;
        }
    }
}

/// A client of all streams. The host takes the output apart.
fn everything() -> Attachment {
    Attachment { stdin: true, stdout: true, stderr: true, multiplexed: true, ..Attachment::default() }
}

/// For the monitor's socket and record, which nobody here reads; its own where there are several.
fn folder(several: bool) -> Result<String> {
    let folder = if several { own_folder() } else { "/run/monitor".to_owned() };
    std::fs::create_dir_all(&folder).context("mkdir", &folder)?;
    Ok(folder)
}

fn own_folder() -> String {
    format!("/run/monitor-{}", std::process::id())
}

/// Removes what this process, or one of before that had its number, has left.
pub(crate) fn clear_folder() {
    // Where nothing was left there is nothing.
    let _ = std::fs::remove_dir_all(own_folder());
}

#[cfg(test)]
mod tests {
    use insula_proto::{Empty, ExecExited};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        (one, other)
    }

    fn status(id: u64) -> Request {
        Request::new(id, Call::Status(Empty {}))
    }

    #[test]
    fn what_comes_after_the_end_of_the_container_is_answered_and_nothing_is_lost() {
        let ((host, channel), (ours, theirs)) = (pair(), pair());
        let mut bridge = Bridge::new(channel, ours).unwrap();
        bridge.request(status(7)).unwrap();
        let exited = ExecExited { exec: "x".to_owned(), code: 5 };
        let said = Reply { id: 0, outcome: Some(Outcome::ExecExited(exited)) };
        insula_sys::socket::send_all(theirs.as_fd(), &insula_proto::encode(&said), &[]).unwrap();
        // With a question that it has not read: the socket is reset.
        drop(theirs);
        bridge.request(status(8)).unwrap();
        while bridge.monitor.is_some() {
            bridge.hear_monitor().unwrap();
        }
        bridge.request(status(9)).unwrap();
        bridge.flush().unwrap();
        let mut bytes = vec![0; 4096];
        let count = rustix::io::read(&host, &mut bytes).unwrap();
        let mut reader = ChannelReader::default();
        reader.push(&bytes[..count]);
        let frames = std::iter::from_fn(|| reader.pop().unwrap()).filter(|frame| frame.kind == Kind::Reply);
        let replies: Vec<Reply> = frames.map(|frame| insula_proto::decode(&frame.payload).unwrap()).collect();
        assert_eq!(replies.iter().map(|reply| reply.id).collect::<Vec<_>>(), [8, 0, 7, 9]);
        assert_eq!(replies[1], said);
        for late in [&replies[0], &replies[2], &replies[3]] {
            assert!(
                matches!(&late.outcome, Some(Outcome::Failed(failed)) if failed.message.contains("ended"))
            );
        }
    }

    #[test]
    fn a_container_of_several_ends_with_its_channel() {
        let ((host, channel), (ours, theirs), (_stream, files)) = (pair(), pair(), pair());
        let mut bridge = Bridge::for_container(channel, ours, files, Devices::default()).unwrap();
        // Before it has begun it has no network.
        bridge
            .request(Request::new(3, Call::Rewire(insula_proto::Rewire { change: b"{}".to_vec() })))
            .unwrap();
        bridge.request(Request::new(4, Call::Resolver(Empty {}))).unwrap();
        bridge.flush().unwrap();
        let mut bytes = vec![0; 4096];
        let count = rustix::io::read(&host, &mut bytes).unwrap();
        let mut reader = ChannelReader::default();
        reader.push(&bytes[..count]);
        let frames = std::iter::from_fn(|| reader.pop().unwrap()).filter(|frame| frame.kind == Kind::Reply);
        let replies: Vec<Reply> = frames.map(|frame| insula_proto::decode(&frame.payload).unwrap()).collect();
        assert!(
            replies.iter().all(|reply| matches!(&reply.outcome, Some(Outcome::Failed(_)))),
            "{replies:?}"
        );
        assert_eq!(replies.iter().map(|reply| reply.id).collect::<Vec<_>>(), [3, 4]);

        drop(host);
        let ended = std::thread::spawn(move || bridge.serve());
        let (count, _) = insula_sys::socket::receive(theirs.as_fd(), &mut bytes).unwrap();
        let asked: Request = insula_proto::decode(&bytes[4..count]).unwrap();
        assert_eq!(asked.call, Some(Call::Destroy(Empty {})));
        drop(theirs);
        ended.join().unwrap().unwrap();
    }
}
