//! `serve-images`: this host's images as a registry for others.
//!
//! The store belongs to the daemon, which speaks the protocol of registries below `/insula/registry` on its own
//! socket. This process listens for others, knows TLS and passwords, and hands on what belongs to images and
//! nothing else. It ends with its terminal, and nothing of the host is reachable any more.

mod front;
mod users;

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::front::{Access, Front};
use self::users::Users;
use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::{printer, terminal};

/// Bytes of a password on standard input.
const PASSWORD_MAX: u64 = 64 << 10;

/// Serve this host's images to other hosts, as a registry
///
/// Others pull with 'insula pull ADDRESS/NAME' or 'docker pull ADDRESS/NAME'; only layers that they lack travel.
/// With --writable they push too: what is pushed as ADDRESS/NAME:TAG is the image NAME:TAG here. It serves until it
/// is ended, Ctrl-C for one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula serve-images
  insula serve-images --listen 10.0.0.5:5000 --tls-cert cert.pem --tls-key key.pem
  insula serve-images --writable --user ann --password-stdin <password.txt
  insula pull 127.0.0.1:5000/web:1                 elsewhere on this host")]
pub(crate) struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(short, long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// Take pushes too, of users with a password
    #[arg(short, long)]
    writable: bool,
    /// Users and their passwords, hashed with bcrypt (htpasswd -B): whoever comes has to be one
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,
    /// A user; the password is asked for
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Take the password of --user from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Certificate to serve with, and those above it (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Serve other hosts without TLS: everyone on the way can read and change what they get
    #[arg(long)]
    insecure: bool,
}

impl Run for ServeArgs {
    async fn run(self, context: Context) -> Outcome {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => Some(front::tls(chain, key)?),
            (None, None) => None,
            _ => bail!("--tls-cert and --tls-key belong together: one is missing"),
        };
        if self.password_stdin && self.user.is_none() {
            bail!("--password-stdin is about --user, which is missing");
        }
        self.check(tls.is_some())?;
        let users = self.users()?;
        if self.writable && users.is_empty() {
            bail!("--writable needs users: give --user NAME or --htpasswd FILE");
        }
        let client = context.client().await?;
        let listener = TcpListener::bind(self.listen).await;
        let listener = listener.with_context(|| format!("listen on {}", self.listen))?;
        let address = listener.local_addr().context("read the address that is listened on")?;
        let access = if self.writable { Access::ReadWrite } else { Access::Read };
        let mode = if self.writable { "read and write" } else { "read only" };
        printer::line(&format!("Serving images on {address} ({mode}); pull them as {address}/NAME:TAG"))?;
        let front = Front::new(client.address().path().to_owned(), users, access, tls);
        let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
        tokio::select! {
            () = front.serve(listener) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(0)
    }
}

impl ServeArgs {
    fn check(&self, tls: bool) -> anyhow::Result<()> {
        if tls || self.listen.ip().is_loopback() {
            return Ok(());
        }
        if !self.insecure {
            bail!(
                "without TLS everyone between {} and its clients can read images and passwords, and change what \
                 is pulled: give --tls-cert and --tls-key, or --insecure where the network is trusted",
                self.listen
            );
        }
        printer::warning(&format!("images are served on {} without TLS", self.listen));
        Ok(())
    }

    fn users(&self) -> anyhow::Result<Users> {
        let mut users = match &self.htpasswd {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
                Users::parse(&text).with_context(|| format!("read {path:?}"))?
            }
            None => Users::default(),
        };
        if let Some(name) = &self.user {
            let password = self.password(name)?;
            if password.is_empty() {
                bail!("the password of {name} is empty");
            }
            users.add(name, &password)?;
        }
        Ok(users)
    }

    fn password(&self, name: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        if self.password_stdin {
            let mut input = std::io::stdin().take(PASSWORD_MAX);
            input.read_to_string(&mut text).context("read the password from standard input")?;
        } else {
            if !std::io::stdin().is_terminal() {
                bail!("the password of {name} cannot be asked for without a terminal: give --password-stdin");
            }
            printer::error_text(&format!("Password of {name}: "));
            let hidden = terminal::Hidden::enter()?;
            std::io::stdin().lock().read_line(&mut text).context("read from the terminal")?;
            drop(hidden);
            printer::error("");
        }
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }
}
