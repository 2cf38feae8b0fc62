//! What an owner is told before anything else: one JSON document in a line, which comes with what its template
//! consists of.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use insula_spec::machine::TenantOrder;

use crate::{Error, Result};

/// The longest order.
const LARGEST: usize = 64 << 10;

/// Takes the order from a socket; what its template consists of is to stay open until the machine has begun.
pub fn receive(socket: BorrowedFd<'_>) -> Result<(TenantOrder, Vec<OwnedFd>)> {
    let (mut line, mut template) = (Vec::new(), Vec::new());
    // Nothing comes behind it before it is answered.
    while line.last() != Some(&b'\n') {
        let mut piece = [0; 4096];
        let (count, gifts) = insula_sys::socket::receive(socket, &mut piece)
            .map_err(|source| Error::call("recvmsg", "an order for a tenant's machine", source))?;
        template.extend(gifts);
        line.extend_from_slice(&piece[..count]);
        if count == 0 || line.len() > LARGEST {
            return Err(Error::Invalid("an order for a tenant's machine has no end".to_owned()));
        }
    }
    let mut order: TenantOrder = serde_json::from_slice(&line)
        .map_err(|error| Error::Invalid(format!("an order for a tenant's machine: {error}")))?;
    if let (Some(plan), [memory, state]) = (&mut order.machine.template, template.as_slice()) {
        let path = |descriptor: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        (plan.memory, plan.state) = (path(memory), path(state));
    }
    Ok((order, template))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use insula_spec::machine::{Backend, KernelPlan, MachinePlan, TemplatePlan};

    use super::*;

    fn order(memory: u64) -> TenantOrder {
        let nothing = PathBuf::new;
        let kernel = KernelPlan { image: nothing(), modules: nothing(), release: "6.1".to_owned() };
        let template = TemplatePlan { release: "6.1".to_owned(), memory: nothing(), state: nothing() };
        let machine = MachinePlan {
            backend: Backend::Kvm,
            vmm: nothing(),
            kernel,
            initramfs: nothing(),
            cpus: 1,
            memory,
            patience: 1,
            // Longer than one piece.
            folder: "x".repeat(5000).into(),
            template: Some(template),
            image: None,
            tenant: None,
            vsock: None,
        };
        TenantOrder {
            tenant: "acme".to_owned(),
            machine,
            cards: 1,
            user: 1,
            cgroup: "x".to_owned(),
            nano_cpus: 0,
            keep: false,
        }
    }

    #[test]
    fn an_order_comes_with_its_template() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut memory, mut state) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        memory.write_all(b"memory").unwrap();
        state.write_all(b"state").unwrap();
        let mut line = serde_json::to_vec(&order(7)).unwrap();
        line.push(b'\n');
        insula_sys::socket::send_all(ours.as_fd(), &line, &[memory.as_fd(), state.as_fd()]).unwrap();
        let (received, template) = receive(theirs.as_fd()).unwrap();
        assert_eq!((received.machine.memory, template.len()), (7, 2));
        let plan = received.machine.template.unwrap();
        for (path, expected) in [(plan.memory, "memory"), (plan.state, "state")] {
            let mut text = String::new();
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn what_is_no_order_is_said() {
        for said in ["", "{", "{}\n", &"x".repeat(LARGEST + 1)] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(said.as_bytes()).unwrap();
            drop(ours);
            assert!(receive(theirs.as_fd()).is_err(), "{said:.9}");
        }
    }
}
