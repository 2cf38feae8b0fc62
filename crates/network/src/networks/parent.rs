//! What macvlans hang on: interfaces of the host, and those that are made for them.

use insula_base::NetworkId;

use super::Inner;
use crate::network::{MacvlanNetwork, ParentOrigin};
use crate::{Error, Network};

/// Which interface it is to be; what is not there is made by [`ensure_parent`].
pub(super) fn choose_parent(
    inner: &Inner,
    wanted: Option<&str>,
    links: &str,
    id: &NetworkId,
) -> Result<(String, ParentOrigin), Error> {
    let Some(name) = wanted else {
        return Ok((format!("{links}-{}", &id.as_str()[..13 - links.len()]), ParentOrigin::Alone));
    };
    let invalid = |why: &'static str| Error::InvalidParent { parent: name.to_owned(), why };
    let taken = inner.networks.iter().find(|network| network.macvlan().is_some_and(|m| m.parent == name));
    if let Some(other) = taken {
        return Err(Error::ParentTaken { parent: name.to_owned(), network: other.name.clone() });
    }
    match inner.routes.link(name)? {
        Some(_) if name == "lo" => return Err(invalid("the loopback interface leads nowhere")),
        Some(link) if link.master.is_some() => {
            return Err(invalid("it is a port of a bridge: give the bridge itself, or another interface"));
        }
        Some(_) => return Ok((name.to_owned(), ParentOrigin::Host)),
        None => {}
    }
    let missing = || invalid("this host has no interface of that name (for a VLAN: INTERFACE.NUMBER)");
    let (device, number) = name.rsplit_once('.').ok_or_else(missing)?;
    let number: u16 = number.parse().map_err(|_| missing())?;
    if !(1..=4094).contains(&number) {
        return Err(invalid("a VLAN has a number from 1 to 4094"));
    }
    inner.routes.link(device)?.ok_or_else(missing)?;
    Ok((name.to_owned(), ParentOrigin::Vlan { device: device.to_owned(), number }))
}

/// Makes the interface be there, as far as that is up to us.
pub(super) fn ensure_parent(inner: &Inner, network: &MacvlanNetwork) -> Result<(), Error> {
    let parent = &network.parent;
    match &network.origin {
        ParentOrigin::Host if inner.routes.link(parent)?.is_none() => {
            let why = "this host has no interface of that name any more";
            Err(Error::InvalidParent { parent: parent.clone(), why })
        }
        ParentOrigin::Host => Ok(()),
        ParentOrigin::Vlan { device, number } => Ok(inner.routes.ensure_vlan(parent, device, *number)?),
        ParentOrigin::Alone => Ok(inner.routes.ensure_alone(parent)?),
    }
}

/// Takes back what was made for a network.
pub(super) fn drop_parent(inner: &Inner, network: &Network) -> Result<(), Error> {
    match network.macvlan() {
        Some(macvlan) if macvlan.origin != ParentOrigin::Host => Ok(inner.routes.delete(&macvlan.parent)?),
        _ => Ok(()),
    }
}
