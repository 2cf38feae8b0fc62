//! `insula-agent`, the first process of a guest.

fn main() {
    insula_agent_core::run()
}
