//! `login logout`.

use std::io::{BufRead as _, IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use clap::Args;
use insula_client::Client;
use insula_models::AuthConfig;

use crate::arguments::Run;
use crate::context::Context;
use crate::failure::Outcome;
use crate::registry::config::Config;
use crate::registry::{HUB, server};
use crate::{printer, terminal};

/// Bytes of a password on standard input.
const PASSWORD_MAX: u64 = 64 << 10;

/// Log in to a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula login registry.example:5000
  insula login -u ann --password-stdin registry.example:5000 <password.txt")]
pub(crate) struct LoginArgs {
    /// User name
    #[arg(short, long, value_name = "USER", default_value = "", hide_default_value = true)]
    username: String,
    /// Password; others on this host can see it
    #[arg(short, long, value_name = "PASSWORD", default_value = "", hide_default_value = true)]
    password: String,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// HOST[:PORT] of the registry [default: Docker Hub]
    server: Option<String>,
}

impl Run for LoginArgs {
    async fn run(self, context: Context) -> Outcome {
        let address = self.server.as_deref().map_or(HUB, server).to_owned();
        let mut config = Config::load()?;
        let client = context.client().await?;
        let known = config.credentials(&address).unwrap_or_default();
        let given = !self.username.is_empty() || !self.password.is_empty() || self.password_stdin;
        if !given && (!known.password.is_empty() || !known.identitytoken.is_empty()) {
            printer::line("Authenticating with existing credentials...")?;
            match login(&client, &mut config, known.clone(), &address).await {
                Ok(()) => return Ok(0),
                Err(error) => {
                    printer::error(&format!(
                        "Login did not succeed, error: {}",
                        crate::failure::describe(&error)
                    ));
                }
            }
        }
        let auth = self.ask(&address, &known.username)?;
        login(&client, &mut config, auth, &address).await?;
        Ok(0)
    }
}

impl LoginArgs {
    fn ask(self, address: &str, known: &str) -> anyhow::Result<AuthConfig> {
        let (mut username, mut password) = (self.username, self.password);
        if !password.is_empty() {
            printer::error("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            if self.password_stdin {
                bail!("--password and --password-stdin are mutually exclusive");
            }
        }
        if self.password_stdin {
            if username.is_empty() {
                bail!("Must provide --username with --password-stdin");
            }
            let mut text = String::new();
            let mut input = std::io::stdin().take(PASSWORD_MAX);
            input.read_to_string(&mut text).context("read the password from standard input")?;
            password = text.trim_end_matches(['\n', '\r']).to_owned();
        }
        if username.is_empty() || password.is_empty() {
            if !std::io::stdin().is_terminal() {
                bail!("Error: Cannot perform an interactive login from a non TTY device");
            }
            if username.is_empty() {
                let shown = if known.is_empty() { String::new() } else { format!(" ({known})") };
                printer::text(&format!("Username{shown}: "))?;
                username = line()?;
                if username.is_empty() {
                    username = known.to_owned();
                }
            }
            if password.is_empty() {
                printer::text("Password: ")?;
                let hidden = terminal::Hidden::enter()?;
                password = line()?;
                drop(hidden);
                printer::text("\n")?;
            }
        }
        if username.is_empty() {
            bail!("Error: Non-null Username Required");
        }
        if password.is_empty() {
            bail!("Error: Password Required");
        }
        Ok(AuthConfig { username, password, serveraddress: address.to_owned(), ..AuthConfig::default() })
    }
}

fn line() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().read_line(&mut text).context("read from the terminal")?;
    Ok(text.trim().to_owned())
}

async fn login(
    client: &Client,
    config: &mut Config,
    mut auth: AuthConfig,
    address: &str,
) -> anyhow::Result<()> {
    address.clone_into(&mut auth.serveraddress);
    let answer = client.login(&auth).await?;
    if !answer.identity_token.is_empty() {
        auth.password = String::new();
        auth.identitytoken = answer.identity_token;
    }
    config.store(address, &auth)?;
    if !config.has_helper(address)? {
        printer::error(&format!(
            "WARNING! Your password will be stored unencrypted in {}.\n\
             Configure a credential helper to remove this warning. See\n\
             https://docs.docker.com/engine/reference/commandline/login/#credentials-store\n",
            config.path()
        ));
    }
    if !answer.status.is_empty() {
        printer::line(&answer.status)?;
    }
    Ok(())
}

/// Log out from a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  insula logout registry.example:5000")]
pub(crate) struct LogoutArgs {
    /// HOST[:PORT] of the registry [default: Docker Hub]
    server: Option<String>,
}

impl Run for LogoutArgs {
    async fn run(self, _context: Context) -> Outcome {
        let address = self.server.as_deref().map_or(HUB, server);
        let mut config = Config::load()?;
        let before = config.credentials(address).unwrap_or_default();
        if before == AuthConfig::default() {
            printer::line(&format!("Not logged in to {address}"))?;
            return Ok(0);
        }
        printer::line(&format!("Removing login credentials for {address}"))?;
        config.erase(address)?;
        Ok(0)
    }
}
