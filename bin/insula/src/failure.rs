//! How a command ends badly: what is printed and the exit code.

use std::error::Error as _;

use insula_client::Error;

use crate::printer;

/// The exit code, or why there is none.
pub(crate) type Outcome = anyhow::Result<u8>;

/// A failure with an exit code other than 1; an empty message was printed already.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

/// An error that ends the command with this exit code, unless it has one.
pub(crate) fn with_code(code: u8, error: anyhow::Error) -> anyhow::Error {
    if is_broken_pipe(&error) {
        return Failure { code: BROKEN_PIPE, message: String::new() }.into();
    }
    if error.is::<Failure>() {
        return error;
    }
    Failure { code, message: describe(&error) }.into()
}

/// Standard output was closed by its reader.
#[derive(Debug, thiserror::Error)]
#[error("write to standard output")]
pub(crate) struct OutputError(#[source] pub(crate) std::io::Error);

/// 128 + SIGPIPE: what a program killed by the signal shows.
const BROKEN_PIPE: u8 = 141;

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OutputError>().is_some_and(|error| error.0.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The message and its causes; those of the daemon are marked as Docker marks them.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        Some(error) => describe_client(error),
        None => insula_base::chain(error.as_ref()),
    }
}

/// As [`describe`], for an error of the client.
pub(crate) fn describe_client(error: &Error) -> String {
    match error {
        Error::Daemon { message, .. } => format!("Error response from daemon: {message}"),
        Error::Connect { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => format!(
            "permission denied while trying to connect to {}\nRun insula as root, ask root for access to the socket, or name none: an engine of your own is started then.",
            error
                .to_string()
                .trim_start_matches("Cannot connect to ")
                .trim_end_matches(" Is insulad running?")
        ),
        Error::Connect { .. } => match error.source() {
            Some(source) => format!("{error} ({})", insula_base::chain(source)),
            None => error.to_string(),
        },
        other => insula_base::chain(other),
    }
}

/// Prints the failure; returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> u8 {
    if is_broken_pipe(error) {
        return BROKEN_PIPE;
    }
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        printer::error_text(&usage.render().to_string());
        return 125;
    }
    let (code, message) = match error.downcast_ref::<Failure>() {
        Some(failure) => (failure.code, failure.message.clone()),
        None => (1, describe(error)),
    };
    if !message.is_empty() {
        printer::error(&message);
    }
    code
}
