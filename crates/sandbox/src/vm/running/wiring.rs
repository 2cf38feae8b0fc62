//! Networks and names of a machine that runs.

use std::os::fd::{AsFd, OwnedFd};

use insula_host::resolver::Sockets;
use insula_proto::{Call, Empty, Rewire};
use insula_spec::machine::CardsChange;
use insula_spec::plan::NetworkChange;

use super::{Names, Running, json, wait_for};
use crate::{Error, Result};

impl Running {
    /// Puts the machine into other networks. What cannot be is as it was before.
    pub(in super::super) fn rewire(&mut self, change: &NetworkChange, events: &OwnedFd) -> Result<()> {
        if !change.shape.is_empty() {
            return Err(Error::Unsupported("the cards of a machine have no rates"));
        }
        let mut cards = CardsChange {
            gateway: change.gateway.clone(),
            gateway6: change.gateway6.clone(),
            ..CardsChange::default()
        };
        let wired = self.plug_all(change, &mut cards).and_then(|()| {
            let change = json(&cards)?;
            self.call(Call::Rewire(Rewire { change }), events).map(drop)
        });
        let gone: Vec<usize> = match &wired {
            Ok(()) => cards.unplug.iter().map(|(place, _)| *place).collect(),
            Err(_) => cards.plug.iter().map(|(place, _)| *place).collect(),
        };
        let unplugged = gone.into_iter().map(|place| self.cards.unplug(place)).collect::<Vec<_>>();
        wired?;
        unplugged.into_iter().collect::<Result<()>>()?;
        self.record()
    }

    /// The host's part, as far as it goes.
    fn plug_all(&mut self, change: &NetworkChange, cards: &mut CardsChange) -> Result<()> {
        for name in &change.unplug {
            let place = self.cards.place(name);
            cards.unplug.extend(place.map(|place| (place, name.clone())));
        }
        for plan in &change.plug {
            cards.plug.push(self.cards.plug(plan)?);
        }
        Ok(())
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
        if any { self.link.move_on(self.machine.channel.as_fd()) } else { Ok(()) }
    }
}
