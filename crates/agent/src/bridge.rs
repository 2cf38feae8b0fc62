//! Between the channel and the monitor: what has descriptors on one side and numbers on the other.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use insula_host::netlink;
use insula_proto::channel::{ChannelFrame, ChannelReader, Kind, greeting, put_frame};
use insula_proto::{Attachment, Call, Done, Empty, Failed, FrameReader, Outcome, Reply, Request};
use insula_sandbox::mux::{MOST_WAITING, Stream};
use insula_spec::machine::{CardsChange, GuestPlan};
use insula_sys::process;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::cards::Devices;
use crate::error::{Context, Error, Result};
use crate::furnish::Furnished;
use crate::names::Names;
use crate::{files, furnish, machine, processes, tenant};

const SIGCHLD: i32 = 17;

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
    /// The standard streams of processes, each a client of the monitor.
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

impl Bridge {
    /// Greets the host.
    pub(crate) fn new(channel: OwnedFd, monitor: OwnedFd) -> Result<Self> {
        let children = process::signal_descriptor(&[SIGCHLD]).context("signalfd", "for children")?;
        let mut out = Vec::new();
        put_frame(&mut out, Kind::Hello, 0, &greeting(&machine::release()?));
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
            for stream in &mut self.streams {
                stream.pump(&mut self.out);
            }
            self.streams.retain(|stream| !stream.output_ended());
        }
    }

    fn wait(&self) -> Result<()> {
        let writing = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut polled = vec![PollFd::new(&self.children, PollFlags::IN)];
        if !self.left {
            polled.push(PollFd::new(&self.channel, PollFlags::IN | writing));
        }
        polled.extend(self.monitor.iter().map(|monitor| PollFd::new(monitor, PollFlags::IN)));
        let room = self.out.len() < MOST_WAITING;
        polled.extend(self.furnished.names.iter().filter(|_| room).flat_map(Names::watched));
        polled.extend(self.streams.iter().filter_map(|stream| stream.watched(room)));
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
        let found = self.streams.iter_mut().find(|stream| stream.number() == frame.stream);
        Ok(found.map_or(Ok(()), |stream| stream.take(&frame))?)
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
                    Ok(()) => Outcome::Done(Done {
                        warnings: std::mem::take(&mut self.furnished.warnings),
                        mapped: self.furnished.mapped,
                    }),
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
        // The host counts in 32 bits.
        self.streams.push(Stream::new(id as u32, ours)?);
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
