//! As much of HTTP as asking the daemon again and again takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

/// Far more than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer, more than any here has.
const LARGEST: usize = 64 << 20;

/// A connection that is kept.
#[derive(Debug)]
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn open(socket: &Path) -> anyhow::Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
        Ok(Self(BufReader::new(stream)))
    }

    /// One that is told of new execs from now on.
    pub(super) fn follow(socket: &Path) -> anyhow::Result<BufReader<UnixStream>> {
        let mut connection = Self::open(socket)?;
        connection.send("GET", "/events?filters=%7B%22event%22%3A%5B%22exec_create%22%5D%7D", "")?;
        // The head comes when it listens.
        connection.head()?;
        Ok(connection.0)
    }

    pub(super) fn send(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: insula\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + body).as_bytes()).with_context(|| format!("send {method} {path}"))
    }

    /// The body of the next answer, which must be a success.
    pub(super) fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let (status, length) = self.head()?;
        let body = match length {
            Some(length) => self.bytes(length)?,
            None => self.chunks()?,
        };
        ensure!(status < 300, "status {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    pub(super) fn ask(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        self.send(method, path, body)?;
        self.answer().with_context(|| format!("{method} {path}"))
    }

    /// Status, and the body's length unless it comes in chunks.
    fn head(&mut self) -> anyhow::Result<(u16, Option<usize>)> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status line")?;
        let mut length = (status == 204 || status == 304).then_some(0);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok((status, length));
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse().context("a length")?);
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line).context("read an answer")?;
        ensure!(count > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    fn bytes(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        ensure!(length <= LARGEST, "an answer of {length} bytes");
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).context("read a body")?;
        Ok(bytes)
    }

    fn chunks(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).context("the length of a chunk")?;
            all.extend(self.bytes(length)?);
            self.line()?;
            if length == 0 {
                return Ok(all);
            }
        }
    }
}
