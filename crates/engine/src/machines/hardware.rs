//! Which backend runs machines: the one that the user wants, or what the hardware can do.

use std::process::{Command, Stdio};

use insula_host::hardware::Hardware;
use insula_spec::machine::Backend;

use super::Machines;

/// A backend, and why it is that one; empty where nobody has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) backend: Backend,
    pub(crate) why: String,
}

impl Machines {
    /// What runs machines. Looked for once, which takes some milliseconds.
    pub(crate) fn choice(&self) -> &Choice {
        self.choice.get_or_init(|| choose(self.wanted, || self.probe()))
    }

    /// Asks the monitor's program: this one makes no machines.
    fn probe(&self) -> Hardware {
        let no = |why: String| Hardware::No { why };
        let output =
            Command::new(&self.monitor).arg("hardware").stdin(Stdio::null()).stderr(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| no(format!("/dev/kvm could not be looked at: {error}"))),
            Ok(output) => no(format!("/dev/kvm could not be looked at: {}", output.status)),
            Err(error) => no(format!("/dev/kvm could not be looked at: {error}")),
        }
    }
}

fn choose(wanted: Option<Backend>, probe: impl FnOnce() -> Hardware) -> Choice {
    match (wanted, probe) {
        (Some(backend), _) => Choice { backend, why: "as the daemon was told".to_owned() },
        (None, probe) => match probe() {
            Hardware::Full => Choice { backend: Backend::Kvm, why: String::new() },
            Hardware::No { why } => Choice { backend: Backend::Qemu, why: format!("emulated: {why}") },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulator_is_for_hosts_that_need_it_and_for_who_wants_it() {
        assert_eq!(choose(None, || Hardware::Full).backend, Backend::Kvm);
        let slow = choose(None, || Hardware::No { why: "it is slow".into() });
        assert_eq!((slow.backend, slow.why.as_str()), (Backend::Qemu, "emulated: it is slow"));
        for wanted in [Backend::Kvm, Backend::Qemu] {
            assert_eq!(choose(Some(wanted), || panic!("nobody looks")).backend, wanted);
        }
    }
}
