//! Ports of the host that lead into an ordinary user's namespaces, and what the daemon tells the program that carries
//! what comes to them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Raised when an older program could not read what it is told any more, or an older daemon its answers.
pub const VERSION: u32 = 1;
/// Bytes of one message between daemon and program.
pub const LARGEST_MESSAGE: usize = 4 << 20;
/// Outlets of one order that come with a socket each.
pub const MOST_AT_ONCE: usize = 32;

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// A port of the host. Transport and address are whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outlet {
    pub transport: Transport,
    /// Where the host's socket is bound.
    pub host: SocketAddr,
    /// Where it leads; port 0 is nowhere.
    pub to: SocketAddr,
}

/// What the daemon wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// What is served at the moment.
    List,
    /// Serve these on sockets that come with the order, one each.
    Serve(Vec<Outlet>),
    /// Lead these, which are served, somewhere else.
    Turn(Vec<Outlet>),
    /// Close these; connections that stand go on.
    Stop(Vec<Outlet>),
    /// Close all and end.
    End,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    List { version: u32, outlets: Vec<Outlet> },
    Done,
    Ended,
    Refused { why: String },
}
