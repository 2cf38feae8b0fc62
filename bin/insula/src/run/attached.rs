//! Being attached: the streams, the window's size, signals.

use std::time::Duration;

use anyhow::Context as _;
use insula_client::{Client, Error};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::streams::{End, Streams};
use crate::terminal;

/// What is attached to, for resizes and signals.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Container(&'a str),
    Exec(&'a str),
}

/// Signals that are passed on, or that end a session in raw mode.
const SIGNALS: [(i32, &str); 8] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (10, "USR1"),
    (12, "USR2"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
];

/// How often a daemon is looked for that does not know the size of the window.
const AGAIN: Duration = Duration::from_millis(200);

/// Signals this process waits for while attached.
#[derive(Debug)]
pub(crate) struct Attached<'a> {
    client: &'a Client,
    target: Target<'a>,
    tty: bool,
    proxy: bool,
    signals: Vec<(i32, &'static str, Signal)>,
    resized: Option<Signal>,
    /// The daemon does not know the size of the window.
    untold: bool,
}

/// How the session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The output has ended.
    Ended,
    /// The user typed the detach keys.
    Detached,
    /// This process was told to end.
    Signalled(i32),
}

impl<'a> Attached<'a> {
    /// Takes over the signals: passed on with `proxy` (not with a terminal, where keys do that).
    pub(crate) fn new(
        client: &'a Client,
        target: Target<'a>,
        tty: bool,
        proxy: bool,
    ) -> anyhow::Result<Self> {
        let mut signals = Vec::new();
        if proxy || tty {
            for (number, name) in SIGNALS {
                let stream =
                    signal(SignalKind::from_raw(number)).with_context(|| format!("wait for SIG{name}"))?;
                signals.push((number, name, stream));
            }
        }
        let resized = match tty {
            true => Some(signal(SignalKind::window_change()).context("wait for SIGWINCH")?),
            false => None,
        };
        Ok(Self { client, target, tty, proxy, signals, resized, untold: false })
    }

    /// Tells the daemon the size of the window; a process that is gone already has none. Where no daemon listens, the
    /// next one is told.
    pub(crate) async fn resize(&mut self) {
        let Some((rows, columns)) = terminal::size() else { return };
        let told = match self.target {
            Target::Container(id) => self.client.resize_container(id, rows, columns).await,
            Target::Exec(id) => self.client.resize_exec(id, rows, columns).await,
        };
        self.untold = matches!(told, Err(Error::Connect { .. } | Error::Connection { .. }));
    }

    /// Changes the size to another one and back, so that a program which was left and is met again
    /// paints its screen.
    pub(crate) async fn repaint(&mut self) {
        if let (Target::Container(id), Some((rows, columns))) = (self.target, terminal::size()) {
            // As in `resize`.
            let _ = self.client.resize_container(id, rows.saturating_add(1), columns).await;
        }
        self.resize().await;
    }

    /// Runs until `work` is done, serving signals meanwhile.
    pub(crate) async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, i32> {
        tokio::pin!(work);
        loop {
            let event = tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = window(&mut self.resized) => None,
                () = tokio::time::sleep(AGAIN), if self.untold => None,
                signal = next_signal(&mut self.signals) => Some(signal),
            };
            match event {
                None => self.resize().await,
                Some((number, name)) => self.pass_on(number, name).await?,
            }
        }
    }

    /// Runs until the streams end.
    pub(crate) async fn follow(&mut self, streams: &mut Streams) -> anyhow::Result<Left> {
        match self.during(streams.end()).await {
            Ok(Ok(End::Output)) => Ok(Left::Ended),
            Ok(Ok(End::Detached)) => Ok(Left::Detached),
            Ok(Err(error)) => Err(error),
            Err(number) => Ok(Left::Signalled(number)),
        }
    }

    /// Passes a signal on; with a terminal it ends this process instead.
    async fn pass_on(&mut self, number: i32, name: &str) -> Result<(), i32> {
        match self.target {
            Target::Container(id) if self.proxy && !self.tty => {
                // The container may have ended in the meantime.
                let _ = self.client.kill_container(id, name).await;
                Ok(())
            }
            _ if name == "CONT" => {
                self.resize().await;
                Ok(())
            }
            _ => Err(number),
        }
    }
}

async fn window(resized: &mut Option<Signal>) {
    match resized {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

async fn next_signal(signals: &mut [(i32, &'static str, Signal)]) -> (i32, &'static str) {
    std::future::poll_fn(|context| {
        for (number, name, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready((*number, *name));
            }
        }
        std::task::Poll::Pending
    })
    .await
}
