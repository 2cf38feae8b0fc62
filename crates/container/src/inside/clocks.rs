//! Clocks of a container's own: time_namespaces(7).

use std::fmt::Write as _;

use insula_spec::bundle::Clock;
use insula_spec::bundle::document::TimeOffset;
use insula_sys::process::{self, CloneFlags};
use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Result};

/// Makes a time namespace, shifts its clocks, which can be done while nobody is in it, and enters it. To be done
/// while `/proc` is the host's, and before the process belongs to another user, whose files there are not its own.
pub(super) fn enter(offsets: &[(Clock, TimeOffset)]) -> Result<()> {
    const OFFSETS: &str = "/proc/self/timens_offsets";
    const CHILDREN: &str = "/proc/self/ns/time_for_children";
    process::unshare(CloneFlags::NEWTIME).context("unshare", "the time namespace")?;
    let mut text = String::new();
    for (clock, TimeOffset { secs, nanosecs }) in offsets {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {secs} {nanosecs}", clock.name());
    }
    if !text.is_empty() {
        std::fs::write(OFFSETS, text).context("write", "linux.timeOffsets")?;
    }
    let own = rustix::fs::open(CHILDREN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open", CHILDREN)?;
    process::join_namespace(std::os::fd::AsFd::as_fd(&own)).context("setns", "the time namespace")
}
