//! Networks and names of a machine that runs.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use insula_host::netlink;
use insula_host::resolver::Sockets;
use insula_proto::{Call, Empty, Rewire};
use insula_spec::machine::CardsChange;
use insula_spec::plan::{ContainerPlan, GatewayPlan, InterfacePlan, NetworkChange};

use super::{Names, Running, json, wait_for};
use crate::Result;

impl Running {
    /// Puts the machine into other networks. What cannot be is as it was before.
    pub(in super::super) fn rewire(&mut self, change: &NetworkChange, events: &OwnedFd) -> Result<()> {
        let mut cards = CardsChange {
            shape: change.shape.clone(),
            gateway: change.gateway.clone(),
            gateway6: change.gateway6.clone(),
            ..CardsChange::default()
        };
        let wired = self
            .body
            .plug(change, &mut cards)
            .and_then(|()| {
                netlink::shape(&change.shape).map_err(|error| insula_container::Error::from(error).into())
            })
            .and_then(|()| self.body.shape(&change.shape))
            .and_then(|()| self.tell_cards(&cards, events));
        let gone: Vec<usize> = match &wired {
            Ok(()) => cards.unplug.iter().map(|(place, _)| *place).collect(),
            Err(_) => cards.plug.iter().map(|(place, _)| *place).collect(),
        };
        let unplugged = self.body.unplug(&gone);
        wired?;
        unplugged?;
        self.record()
    }

    pub(super) fn tell_cards(&mut self, cards: &CardsChange, events: &OwnedFd) -> Result<()> {
        let change = json(cards)?;
        self.call(Call::Rewire(Rewire { change }), events).map(drop)
    }

    /// What comes before the program of a container in a tenant's machine: its network namespace is there by now.
    pub(super) fn settle_in(&mut self, plan: &ContainerPlan, events: &OwnedFd) -> Result<()> {
        let plug = self.body.seat()?.cards().clone();
        let gateway = |of: fn(&InterfacePlan) -> Option<IpAddr>| {
            plan.interfaces.iter().find_map(|interface| {
                Some(GatewayPlan { address: of(interface)?, interface: interface.name.clone() })
            })
        };
        if !plug.is_empty() {
            let cards = CardsChange {
                unplug: Vec::new(),
                plug,
                shape: Vec::new(),
                gateway: gateway(|interface| interface.gateway),
                gateway6: gateway(|interface| interface.gateway6),
            };
            self.tell_cards(&cards, events)?;
        }
        if plan.resolver { self.call(Call::Resolver(Empty {}), events).map(drop) } else { Ok(()) }
    }

    /// The sockets of the container's name server. The guest gets one with its start, or now.
    pub(in super::super) fn resolver(&mut self, events: &OwnedFd) -> Result<Sockets> {
        if self.names.is_none() {
            self.call(Call::Resolver(Empty {}), events)?;
        }
        self.listen_for_names(events)?.server()
    }

    pub(super) fn listen_for_names(&mut self, events: &OwnedFd) -> Result<&Names> {
        let names = match self.names.take() {
            Some(names) => names,
            None => {
                let names = Names::new()?;
                wait_for(events, names.answers())?;
                names
            }
        };
        Ok(self.names.insert(names))
    }

    pub(super) fn serve_names(&mut self) -> Result<()> {
        let questions = self.link.questions();
        let Some(names) = &mut self.names else { return Ok(()) };
        for question in questions {
            names.ask(question);
        }
        let mut any = false;
        while let Some(answer) = names.answer() {
            self.link.answer_question(&answer);
            any = true;
        }
        if any { self.link.move_on(self.body.channel()) } else { Ok(()) }
    }
}
