//! Monitors, seen from the daemon: spares that wait, connections, and what they leave on disk.

mod connection;
mod departures;
mod end;
mod listeners;
mod program;
mod reach;
mod record;
mod silence;
mod spares;
mod task;

pub(crate) use connection::Connection;
pub(crate) use end::{end_monitor, end_politely};
pub(crate) use insula_host::process::Process;
pub(crate) use listeners::listeners;
pub(crate) use reach::{Reached, nobody_listens, reach};
pub(crate) use record::{LaunchRecord, SandboxFolder};
pub(crate) use silence::{Asked, Patience, is_stopped};
pub(crate) use spares::Spares;
pub(crate) use task::Task;
