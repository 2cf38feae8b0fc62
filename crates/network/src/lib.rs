//! Networks of containers: drivers, addresses, published ports and the files that tell a
//! container its names.
//!
//! Everything here is synchronous and quick: a container's endpoint is one commit in the state
//! and one netlink batch. The wall makes the interface itself (see [`insula_host::netlink`]).

mod endpoint;
mod error;
pub mod files;
pub mod names;
mod network;
mod networks;
mod pool;
mod port;
mod request;
mod reserve;
mod subnet6;

pub use endpoint::{Attachment, ConnectRequest, Endpoint, EndpointRequest, Mode};
pub use error::Error;
pub use network::{Addressing, BridgeNetwork, BridgeV6, Driver, MacvlanNetwork, Network, ParentOrigin};
pub use networks::{Deviation, MOST_PORTS, Networks, Options};
pub use pool::{Pool, Subnet};
pub use port::{PortRequest, Proto, PublishedPort};
pub use request::{NetworkRequest, SubnetRequest};
pub use reserve::listen_at;
pub use subnet6::Subnet6;
