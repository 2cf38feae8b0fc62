//! Containers with their state as one file: insula's addition, below `/insula`.

use std::collections::BTreeMap;

use crate::lenient::document;
use crate::{ContainerConfig, EndpointSettings, HostConfig, Labels, NetworkCreateRequest};

document! {
    /// What a bundle says of itself: its member `insula.json`.
    Workload {
        /// Of the format; one that is higher than the reader's is refused.
        version: u32,
        created: String,
        containers: Vec<WorkloadContainer>,
        /// Networks that users made and the containers are in.
        networks: Vec<NetworkCreateRequest>,
        volumes: Vec<WorkloadVolume>,
    }
}

document! {
    /// A container of a bundle.
    WorkloadContainer {
        name: String,
        /// Id of the image.
        image: String,
        /// As the user wrote it.
        image_name: String,
        /// It ran when it was bundled.
        running: bool,
        config: ContainerConfig,
        host_config: HostConfig,
        networks: BTreeMap<String, EndpointSettings>,
        /// Where it has which volume.
        mounts: Vec<WorkloadMount>,
        /// Digest of the archive of its writable layer.
        layer: String,
    }
}

document! {
    /// A volume of a container of a bundle.
    WorkloadMount {
        target: String,
        volume: String,
        /// Nobody named it: it goes with `rm -v`.
        anonymous: bool,
        read_only: bool,
        mode: String,
    }
}

document! {
    /// A volume of a bundle.
    WorkloadVolume {
        name: String,
        labels: Labels,
        /// Digest of the archive of its files.
        archive: String,
    }
}

document! {
    /// Answer of `POST /insula/unbundle`.
    WorkloadRestored {
        containers: Vec<WorkloadMade>,
        warnings: Vec<String>,
    }
}

document! {
    /// A container that came out of a bundle.
    WorkloadMade {
        id: String,
        name: String,
        /// It ran when it was bundled; it is not started by this.
        ran: bool,
    }
}

document! {
    /// Something that a bundle wants and this host has already: an element of the answer of `POST
    /// /insula/unbundle/check`.
    WorkloadConflict {
        /// `container`, `volume`, `network` or `port`.
        kind: String,
        /// The name, or the port as the bundle has it.
        name: String,
        reason: String,
    }
}
