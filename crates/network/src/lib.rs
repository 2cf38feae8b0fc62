//! Networks of containers: drivers, addresses, published ports and the files that tell a
//! container its names.
//!
//! Everything here is synchronous and quick: a container's endpoint is one commit in the state
//! and one netlink batch. The wall makes the interface itself (see [`insula_host::netlink`]).

mod endpoint;
mod error;
pub mod files;
mod network;
mod networks;
mod pool;
mod port;
mod reserve;

pub use endpoint::{Attachment, Endpoint, EndpointRequest, Mode};
pub use error::Error;
pub use network::{BridgeNetwork, Driver, Network};
pub use networks::{Networks, Options};
pub use pool::Subnet;
pub use port::{PortRequest, Proto, PublishedPort};
