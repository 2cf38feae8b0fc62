//! What a workload wrote: the records of its log, from a point on, and on as they are written.

mod cursor;
mod file;
mod tail;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use self::file::{Extent, LogFiles};
pub use self::file::{LogFormat, LogLine, Stream};
use crate::containers::LogSource;
use crate::{Engine, Error, Result};

/// Bytes of output that are handed out at once, more or less.
const BATCH: usize = 64 << 10;

/// Which records are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// From the first record of then or later on, whatever the clock did afterwards.
    pub since: Option<Timestamp>,
    /// Until then.
    pub until: Option<Timestamp>,
    /// The last so many records only, counted before the other conditions as Docker does.
    pub tail: Option<u64>,
    /// Wait for what is written until the workload ends.
    pub follow: bool,
}

/// Resolves when the workload has ended and its log is complete.
pub type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The records that were asked for, a batch at a time.
pub struct LogStream {
    /// Taken while a thread that may block reads.
    files: Option<LogFiles>,
    options: LogOptions,
    path: PathBuf,
    follow: Option<Follow>,
    finished: bool,
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream")
            .field("path", &self.path)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

struct Follow {
    /// An inotify descriptor on the log's folder.
    changes: pipe::Receiver,
    ended: Ended,
}

impl LogStream {
    /// Opens the log at `path`. With `follow`, it ends when `ended` does and everything was read.
    pub async fn open(path: &Path, format: LogFormat, options: LogOptions, ended: Ended) -> io::Result<Self> {
        // Before the first look, so that nothing is written unseen in between.
        let changes = options.follow.then(|| watch(path)).transpose()?;
        let (at, tail) = (path.to_owned(), options.tail);
        let extent = if options.follow { Extent::Growing } else { Extent::AsItIs };
        let files = blocking(move || LogFiles::open(&at, format, tail, extent)).await?;
        let ended = match options.until {
            Some(until) => either(ended, until),
            None => ended,
        };
        Ok(Self {
            files: Some(files),
            options,
            path: path.to_owned(),
            follow: changes.map(|changes| Follow { changes, ended }),
            finished: false,
        })
    }

    /// The next records, at least one; `None` at the end.
    pub async fn next(&mut self) -> Option<io::Result<Vec<LogLine>>> {
        loop {
            if self.finished {
                return None;
            }
            match self.read().await {
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
                Ok(lines) if !lines.is_empty() => return Some(Ok(lines)),
                Ok(_) if self.finished => return None,
                Ok(_) => {}
            }
            match &mut self.follow {
                None => self.finished = true,
                Some(follow) => {
                    if wait(follow).await {
                        // One last look: the log is complete now.
                        self.follow = None;
                    }
                }
            }
        }
    }

    async fn read(&mut self) -> io::Result<Vec<LogLine>> {
        // It is put back unless the read failed or this future was dropped midway.
        let Some(mut files) = self.files.take() else {
            return Err(io::Error::other("the log was abandoned in the middle of a read"));
        };
        let options = self.options.clone();
        let (files, batch) = blocking(move || {
            let batch = collect(&mut files, &options)?;
            Ok((files, batch))
        })
        .await?;
        self.files = Some(files);
        self.finished = batch.past_until;
        if batch.began {
            self.options.since = None;
        }
        Ok(batch.lines)
    }
}

/// The end of the workload, or the time after which nothing is wanted.
fn either(ended: Ended, until: Timestamp) -> Ended {
    let left = Duration::try_from(Timestamp::now().until(until).unwrap_or_default()).unwrap_or_default();
    Box::pin(async move {
        // Longer than the deadline is no error: it is the deadline.
        let _ = tokio::time::timeout(left, ended).await;
    })
}

impl Engine {
    /// The records of a container's log that were asked for.
    pub async fn open_log(&self, source: LogSource, options: LogOptions) -> Result<LogStream> {
        match source.file {
            Some((path, format)) => LogStream::open(&path, format, options, source.ended)
                .await
                .map_err(|error| Error::io("read the log", &path, error)),
            // Docker refuses to read what the driver `none` never kept.
            None => Err(Error::Unsupported("configured logging driver does not support reading".to_owned())),
        }
    }
}

struct Batch {
    lines: Vec<LogLine>,
    /// A record of `since` or later was met: times of those behind it may be earlier, where the clock was set
    /// back, and they are wanted too.
    began: bool,
    /// A record after `until` was met.
    past_until: bool,
}

fn collect(files: &mut LogFiles, options: &LogOptions) -> io::Result<Batch> {
    let mut batch = Batch { lines: Vec::new(), began: options.since.is_none(), past_until: false };
    let mut size = 0;
    while size < BATCH {
        let Some(line) = files.next()? else { break };
        if options.until.is_some_and(|until| line.time > until) {
            batch.past_until = true;
            break;
        }
        let wanted = match line.stream {
            Stream::Stdout => options.stdout,
            Stream::Stderr => options.stderr,
        };
        batch.began |= options.since.is_some_and(|since| line.time >= since);
        if wanted && batch.began {
            size += line.bytes.len() + size_of::<LogLine>();
            batch.lines.push(line);
        }
    }
    Ok(batch)
}

/// Waits for a change of the log or the end of the workload; whether it is the end.
async fn wait(follow: &mut Follow) -> bool {
    let mut events = [0; 4096];
    tokio::select! {
        biased;
        // What changed does not matter: everything is looked at again.
        read = follow.changes.read(&mut events) => read.is_err(),
        () = &mut follow.ended => true,
    }
}

/// inotify(7) on the folder: files written in it, made in it, renamed in it.
fn watch(path: &Path) -> io::Result<pipe::Receiver> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a log file is in a folder"))?;
    let descriptor = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&descriptor, folder, changes)?;
    // Read readiness is all that is asked of it, which inotify has as a pipe has.
    pipe::Receiver::from_owned_fd_unchecked(descriptor)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

    use tokio::sync::oneshot;

    fn options() -> LogOptions {
        LogOptions { stdout: true, stderr: true, ..LogOptions::default() }
    }

    fn never() -> Ended {
        Box::pin(std::future::pending())
    }

    fn append(path: &Path, text: &str, stream: &str, second: u32) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let time = format!("2026-01-01T00:00:{second:02}Z");
        let record = serde_json::json!({ "log": text, "stream": stream, "time": time });
        file.write_all(format!("{record}\n").as_bytes()).unwrap();
    }

    async fn texts(stream: &mut LogStream) -> Vec<String> {
        let lines = stream.next().await.unwrap().unwrap();
        lines.into_iter().map(|line| String::from_utf8(line.bytes).unwrap()).collect()
    }

    async fn read_with(path: &Path, options: LogOptions) -> Vec<String> {
        let mut stream = LogStream::open(path, LogFormat::Json, options, never()).await.unwrap();
        let mut all = Vec::new();
        while let Some(lines) = stream.next().await {
            all.extend(lines.unwrap().into_iter().map(|line| String::from_utf8(line.bytes).unwrap()));
        }
        all
    }

    #[tokio::test]
    async fn records_are_chosen_by_stream_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for second in 0..6 {
            append(&path, &format!("{second}"), if second % 2 == 0 { "stdout" } else { "stderr" }, second);
        }
        let at = |second: u32| Some(format!("2026-01-01T00:00:{second:02}Z").parse().unwrap());
        assert_eq!(read_with(&path, LogOptions { stderr: false, ..options() }).await, ["0", "2", "4"]);
        assert_eq!(read_with(&path, LogOptions { since: at(4), ..options() }).await, ["4", "5"]);
        assert_eq!(read_with(&path, LogOptions { until: at(1), ..options() }).await, ["0", "1"]);
        let tail = LogOptions { tail: Some(3), stdout: false, ..options() };
        assert_eq!(read_with(&path, tail).await, ["3", "5"]);
    }

    #[tokio::test]
    async fn what_was_written_after_the_clock_was_set_back_is_later_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for second in [10, 20, 30, 11, 12] {
            append(&path, &format!("{second}"), "stdout", second);
        }
        let since = Some("2026-01-01T00:00:20Z".parse().unwrap());
        assert_eq!(read_with(&path, LogOptions { since, ..options() }).await, ["20", "30", "11", "12"]);
    }

    #[tokio::test]
    async fn a_log_ends_where_it_did_when_it_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for second in 0..3 {
            append(&path, &format!("{second}"), "stdout", second);
        }
        for (tail, wanted) in [(None, 0..3), (Some(2), 1..3)] {
            let options = LogOptions { tail, ..options() };
            let mut stream = LogStream::open(&path, LogFormat::Json, options, never()).await.unwrap();
            append(&path, "later", "stdout", 3);
            std::fs::rename(&path, folder.path().join("log.1")).unwrap();
            append(&path, "later still", "stdout", 4);
            assert_eq!(texts(&mut stream).await, wanted.map(|n| n.to_string()).collect::<Vec<_>>());
            assert!(stream.next().await.is_none());
            std::fs::remove_file(&path).unwrap();
            std::fs::rename(folder.path().join("log.1"), &path).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            file.set_len(text.find("{\"log\":\"later").unwrap() as u64).unwrap();
        }
    }

    #[tokio::test]
    async fn a_followed_log_ends_with_its_workload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, "a", "stdout", 0);
        let (end, ended) = oneshot::channel::<()>();
        let ended: Ended = Box::pin(async move { drop(ended.await) });
        let mut stream =
            LogStream::open(&path, LogFormat::Json, LogOptions { follow: true, ..options() }, ended)
                .await
                .unwrap();
        assert_eq!(texts(&mut stream).await, ["a"]);
        let (wrote, ()) = tokio::join!(texts(&mut stream), async { append(&path, "b", "stdout", 1) });
        assert_eq!(wrote, ["b"]);
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        append(&path, "c", "stdout", 2);
        assert_eq!(texts(&mut stream).await, ["c"]);
        append(&path, "d", "stdout", 3);
        end.send(()).unwrap();
        assert_eq!(texts(&mut stream).await, ["d"]);
        let last = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap();
        assert!(last.is_none());
    }
}
