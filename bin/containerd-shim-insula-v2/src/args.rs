//! The flags of containerd's shims, in the way of Go's: one dash or two, the value after `=` or as the next word.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use insula_shim_core::{Invocation, Isolation};

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Delete,
    /// This program's own: serve at a socket that is open under this number.
    Serve {
        socket: PathBuf,
        number: i32,
    },
    Version,
}

const SOCKET: &str = "socket";
const SOCKET_FD: &str = "socket-fd";
const MACHINE: &str = "machine";
/// The name of this program by which a pod gets a machine: that of the runtime `io.containerd.insula-vm.v2`.
const MACHINE_NAME: &str = "containerd-shim-insula-vm-v2";

/// What the name says that this program was called by.
pub(crate) fn isolation(name: &str) -> Isolation {
    match name.rsplit('/').next() {
        Some(MACHINE_NAME) => Isolation::Machine,
        _ => Isolation::Process,
    }
}

/// The command line of [`Action::Serve`].
pub(crate) fn to_serve(invocation: &Invocation, socket: &str, number: i32) -> Vec<String> {
    let mut words = vec![
        format!("-namespace={}", invocation.namespace),
        format!("-id={}", invocation.id),
        format!("-address={}", invocation.address),
        format!("-{SOCKET}={socket}"),
        format!("-{SOCKET_FD}={number}"),
    ];
    words.extend(invocation.debug.then(|| "-debug".to_owned()));
    words.extend((invocation.isolation == Isolation::Machine).then(|| format!("-{MACHINE}")));
    words
}

/// The words behind the program's name.
pub(crate) fn parse(
    isolation: Isolation,
    words: impl Iterator<Item = String>,
) -> Result<(Action, Invocation)> {
    let mut invocation = Invocation { bundle: PathBuf::from("."), isolation, ..Invocation::default() };
    let (mut socket, mut number, mut action) = (None, None, None);
    let mut words = words;
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            action = Some(word);
            break;
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        match name {
            "v" | "version" => return Ok((Action::Version, invocation)),
            MACHINE => {
                invocation.isolation = Isolation::Machine;
                continue;
            }
            "debug" => {
                invocation.debug = value.is_none_or(|value| value == "true");
                continue;
            }
            _ => {}
        }
        let value = match value {
            Some(value) => value.to_owned(),
            None => words.next().with_context(|| format!("flag needs an argument: -{name}"))?,
        };
        match name {
            "namespace" => invocation.namespace = value,
            "id" => invocation.id = value,
            "address" => invocation.address = value,
            "bundle" => invocation.bundle = value.into(),
            // Events go to containerd's socket, without a run of it for each.
            "publish-binary" => {}
            SOCKET => socket = Some(value.into()),
            SOCKET_FD => number = Some(value.parse().with_context(|| format!("invalid value {value:?}"))?),
            _ => bail!("flag provided but not defined: -{name}"),
        }
    }
    if invocation.namespace.is_empty() {
        bail!("a shim needs -namespace");
    }
    if invocation.id.is_empty() {
        bail!("a shim needs -id");
    }
    let action = match (action.as_deref(), socket, number) {
        (Some("start"), ..) => Action::Start,
        (Some("delete"), ..) => Action::Delete,
        (None, Some(socket), Some(number)) => Action::Serve { socket, number },
        (Some(other), ..) => bail!("unknown action {other:?}: containerd says start or delete"),
        (None, ..) => bail!("this program is started by containerd, with start or delete"),
    };
    Ok((action, invocation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<(Action, Invocation)> {
        parse(Isolation::Process, words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn as_containerd_calls() {
        let words =
            ["-namespace", "k8s.io", "--address=/run/c.sock", "-publish-binary", "/bin/c", "-id", "box"];
        let (action, invocation) =
            parsed(&[&words[..], &["-debug", "-bundle", "/b", "delete"]].concat()).unwrap();
        assert_eq!(action, Action::Delete);
        assert_eq!((invocation.namespace.as_str(), invocation.id.as_str()), ("k8s.io", "box"));
        assert_eq!(invocation.address, "/run/c.sock");
        assert_eq!(invocation.bundle, PathBuf::from("/b"));
        assert!(invocation.debug);
    }

    #[test]
    fn our_own_call_is_understood() {
        let invocation = Invocation {
            namespace: "n".to_owned(),
            id: "-x".to_owned(),
            bundle: ".".into(),
            isolation: Isolation::Machine,
            ..Invocation::default()
        };
        let (action, again) = parse(Isolation::Process, to_serve(&invocation, "/s", 7).into_iter()).unwrap();
        assert_eq!(action, Action::Serve { socket: "/s".into(), number: 7 });
        assert_eq!(again, invocation);
    }

    #[test]
    fn the_name_says_which_wall() {
        assert_eq!(isolation("/usr/bin/containerd-shim-insula-vm-v2"), Isolation::Machine);
        assert_eq!(isolation("containerd-shim-insula-v2"), Isolation::Process);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for words in [
            &["start"][..],
            &["-namespace", "n", "start"],
            &["-namespace", "n", "-id", "x"],
            &["-namespace", "n", "-id", "x", "stop"],
            &["-namespace", "n", "-id"],
            &["-namespace", "n", "-id", "x", "-color", "red", "start"],
        ] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
