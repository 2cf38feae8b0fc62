//! Standard streams: the ends that stay outside and those that go inside.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use insula_spec::plan::StdioPlan;
use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::error::{Context, Result};

/// The ends outside.
#[derive(Debug)]
pub enum Streams {
    /// `stdin` is absent where it was not asked for.
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
    /// The master of a pseudo terminal: everything in one.
    Terminal(OwnedFd),
    /// Those of the builder itself, which a bundle's program has too.
    Inherited,
}

/// The ends inside, before they become 0, 1 and 2.
#[derive(Debug)]
pub(crate) enum Ends {
    Pipes {
        /// Absent where nothing is to be read.
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// Opened inside, on the container's own devpts.
    Terminal { columns: u16, rows: u16 },
    /// 0, 1 and 2 as they are.
    Inherited,
}

/// For a process of a bundle: no pipes, since nobody stays to read them.
pub(crate) fn make_for_bundle(stdio: &StdioPlan) -> (Option<Streams>, Ends) {
    if stdio.tty {
        (None, Ends::Terminal { columns: stdio.columns, rows: stdio.rows })
    } else {
        (Some(Streams::Inherited), Ends::Inherited)
    }
}

/// Makes both kinds of ends. Pipes are handed to `owner` (the container's root), who may hand them
/// on to the process' user, so that `/dev/stdout` can be opened again by its path.
pub(crate) fn make(stdio: &StdioPlan, owner: u32) -> Result<(Option<Streams>, Ends)> {
    if stdio.tty {
        return Ok((None, Ends::Terminal { columns: stdio.columns, rows: stdio.rows }));
    }
    let (outside_in, inside_in) = if stdio.open_stdin {
        let (reader, writer) = pipe(owner)?;
        (Some(writer), Some(reader))
    } else {
        (None, None)
    };
    let (stdout, inside_out) = pipe(owner)?;
    let (stderr, inside_err) = pipe(owner)?;
    let ends = Ends::Pipes { stdin: inside_in, stdout: inside_out, stderr: inside_err };
    Ok((Some(Streams::Pipes { stdin: outside_in, stdout, stderr }), ends))
}

fn pipe(owner: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe2", "for a stream")?;
    if owner != 0 {
        rustix::fs::fchown(&reader, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))
            .context("fchown", "a stream's pipe")?;
    }
    Ok((reader, writer))
}

/// Gives the standard streams to the user of the process, so that `/dev/stdout` can be opened again by its
/// path. What cannot change hands (a socket, a file of someone else's mount) stays as it is. In place of the host's
/// `/dev/null` there is the container's: root of the host's ids could change the mode and the owner of that.
pub(crate) fn hand_over(uid: u32) -> Result<()> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let stat = rustix::fs::fstat(stream).context("fstat", "a standard stream")?;
        if is_null(&stat) {
            replace_null(stream)?;
            continue;
        }
        if stat.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS | Errno::OVERFLOW) => {}
            Err(error) => return Err(error).context("fchown", "a standard stream"),
        }
    }
    Ok(())
}

fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
}

/// A container without one keeps what it has.
fn replace_null(stream: BorrowedFd<'_>) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(stream).context("fcntl", "a standard stream")?;
    let Some(own) = own_null(flags & OFlags::RWMODE)? else { return Ok(()) };
    match stream.as_raw_fd() {
        0 => rustix::stdio::dup2_stdin(&own).context("dup2", "standard input"),
        1 => rustix::stdio::dup2_stdout(&own).context("dup2", "standard output"),
        _ => rustix::stdio::dup2_stderr(&own).context("dup2", "standard error"),
    }
}

impl Ends {
    /// Makes the ends descriptors 0, 1 and 2, open across execve.
    pub(crate) fn install(
        stdin: BorrowedFd<'_>,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> Result<()> {
        rustix::stdio::dup2_stdin(stdin).context("dup2", "standard input")?;
        rustix::stdio::dup2_stdout(stdout).context("dup2", "standard output")?;
        rustix::stdio::dup2_stderr(stderr).context("dup2", "standard error")
    }

    /// The descriptors held.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                stdin.iter().chain([stdout, stderr]).map(AsFd::as_fd).collect()
            }
            Self::Terminal { .. } | Self::Inherited => Vec::new(),
        }
    }
}

/// An input that is at its end, as the container has it: a descriptor of the host's `/dev/null` would
/// let root of the host's ids change the mode and the owner of that.
pub(crate) fn empty_input() -> Result<OwnedFd> {
    if let Some(null) = own_null(OFlags::RDONLY)? {
        return Ok(null);
    }
    // Something else was put there: a pipe that nobody writes to reads the same.
    let (reader, _writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe2", "for a stream")?;
    Ok(reader)
}

/// `/dev/null` as the container has it, if that is what is there.
fn own_null(mode: OFlags) -> Result<Option<OwnedFd>> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open", "/")?;
    let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if let Ok(null) = rustix::fs::openat2(&root, "dev/null", flags, Mode::empty(), resolve) {
        let stat = rustix::fs::fstat(&null).context("fstat", "/dev/null")?;
        if is_null(&stat) {
            rustix::fs::fcntl_setfl(&null, OFlags::empty()).context("fcntl", "/dev/null")?;
            return Ok(Some(null));
        }
    }
    Ok(None)
}
