//! The subscriptions of one WebSocket. Each goes on alone while it catches up or while its client is slow,
//! and in a fan-out with others once it stands where they stand.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::close::Close;
use crate::cursor::Cursor;
use crate::delivery::{Delivery, Outgoing};
use crate::dialect::Dialect;
use crate::fan_out::{Fallen, FanOuts, Joined, Listener};
use crate::filter::Filter;
use crate::group::Bell;
use crate::wire::{Gone, Outlet};

/// Writes after which one subscription of several gives way to the next, all together.
const TURNS: usize = 64;
/// Bytes after which nothing more is taken for one write: what a stuck socket holds.
const BYTES_PER_WRITE: usize = 256 * 1_024;

/// Why a WebSocket can be shown nothing more.
pub(crate) enum Stop {
    /// Events are missing, and it cannot be told of a gap.
    Missed,
    Gone,
}

impl Stop {
    /// How it is closed.
    pub(crate) fn close(self) -> Result<Close, Gone> {
        match self {
            Self::Missed => Ok(Close::Missed),
            Self::Gone => Err(Gone),
        }
    }
}

struct Sub {
    dialect: Dialect,
    way: Way,
}

enum Way {
    Alone(Box<Delivery>),
    Joined(Joined),
    /// It is on its way from one to the other.
    Between,
}

/// Those of one connection.
pub(crate) struct Subs {
    fan_outs: Arc<FanOuts>,
    pub(crate) bell: Bell,
    list: Vec<Sub>,
    /// Which is asked first: each gets its turn.
    turn: usize,
    /// The connection ends: none joins others any more.
    parting: bool,
    /// Why nothing more is shown, once what came before it is written.
    stop: Option<Stop>,
}

impl Subs {
    pub(crate) fn new(fan_outs: Arc<FanOuts>) -> Self {
        Self {
            fan_outs,
            bell: Bell::default(),
            list: Vec::new(),
            turn: 0,
            parting: false,
            stop: None,
        }
    }

    pub(crate) fn add(&mut self, dialect: Dialect, delivery: Delivery) {
        self.list.push(Sub { dialect, way: Way::Alone(Box::new(delivery)) });
    }

    /// Ends the one of that name; false when there is none.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.list.len();
        self.list.retain(|sub| sub.name() != Some(name));
        self.list.len() < before
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|sub| sub.name() == Some(name))
    }

    /// Names and what they ask for.
    pub(crate) fn filters(&self) -> impl Iterator<Item = (&str, &Filter)> {
        self.list.iter().filter_map(|sub| Some((sub.name()?, sub.filter()?)))
    }

    /// When something is to be sent; `None` while nothing waits here.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.list.iter().filter_map(Sub::due).min()
    }

    /// Encoded frames of what is due, to be written before this is called again. Rings the bell when there may
    /// be more.
    ///
    /// # Errors
    /// Nothing more can be shown.
    pub(crate) fn pull<O>(&mut self, outlet: &Arc<O>) -> Result<Vec<Bytes>, Stop>
    where
        O: Outlet + 'static,
    {
        if let Some(stop) = self.stop.take() {
            return Err(stop);
        }
        let mut frames = Vec::new();
        if let Err(stop) = self.pull_into(&mut frames, outlet) {
            if frames.is_empty() {
                return Err(stop);
            }
            self.stop = Some(stop);
        }
        if !frames.is_empty() {
            self.bell.notify_one();
        }
        Ok(frames)
    }

    fn pull_into<O>(&mut self, frames: &mut Vec<Bytes>, outlet: &Arc<O>) -> Result<(), Stop>
    where
        O: Outlet + 'static,
    {
        let (now, mut bytes) = (Instant::now(), 0);
        let count = self.list.len();
        self.turn = self.turn.wrapping_add(1);
        for index in 0..count {
            let at = (self.turn + index) % count;
            let Some(sub) = self.list.get_mut(at) else { continue };
            for _ in 0..TURNS.div_ceil(count) {
                if bytes > BYTES_PER_WRITE {
                    break;
                }
                let Some(outgoing) = sub.pull(now, &self.bell)? else {
                    // Not before what was pulled is written: a fan-out would write the next before it.
                    if !self.parting && frames.is_empty() {
                        sub.join(outlet.clone(), &self.bell, &self.fan_outs);
                    }
                    break;
                };
                self.fan_outs.sent.count(&outgoing, 1);
                let more = sub.dialect.frames(&outgoing, sub.place()).ok_or(Stop::Missed)?;
                bytes += more.len();
                frames.push(more);
            }
        }
        Ok(())
    }

    /// Encoded frames of the places that moved without anything to send. Those who joined are told at once:
    /// what their fan-out writes next tells a later place.
    pub(crate) fn moved(&mut self) -> Vec<Bytes> {
        let moved = |sub: &mut Sub| match &mut sub.way {
            Way::Alone(delivery) => sub.dialect.moved(&*delivery.moved()?),
            Way::Joined(joined) => {
                joined.tell_moved();
                None
            }
            Way::Between => None,
        };
        self.list.iter_mut().filter_map(moved).collect()
    }

    /// Each goes its last steps alone.
    ///
    /// # Errors
    /// One of them cannot.
    pub(crate) fn part(&mut self) -> Result<(), Stop> {
        self.parting = true;
        self.list.iter_mut().try_for_each(|sub| sub.part(&self.bell))
    }

    /// Names, and the places up to which the client has everything; `None` while it does not have the values
    /// that come first.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, Option<&Arc<Cursor>>)> {
        self.list.iter().filter_map(|sub| Some((sub.name()?, sub.place())))
    }
}

impl Sub {
    fn name(&self) -> Option<&str> {
        match &self.dialect {
            Dialect::Plain => None,
            Dialect::Framed(name) => Some(name),
        }
    }

    fn filter(&self) -> Option<&Filter> {
        match &self.way {
            Way::Alone(delivery) => Some(delivery.subscription.filter()),
            Way::Joined(joined) => Some(joined.filter()),
            Way::Between => None,
        }
    }

    fn due(&self) -> Option<Instant> {
        match &self.way {
            Way::Alone(delivery) => delivery.due(),
            Way::Joined(_) | Way::Between => None,
        }
    }

    fn place(&self) -> Option<&Arc<Cursor>> {
        match &self.way {
            Way::Alone(delivery) => delivery.place(),
            Way::Joined(_) | Way::Between => None,
        }
    }

    /// What is to be sent now by this task.
    fn pull(&mut self, now: Instant, bell: &Bell) -> Result<Option<Outgoing>, Stop> {
        if let Way::Joined(joined) = &self.way {
            match joined.fallen() {
                None => return Ok(None),
                Some(fallen) => self.go_on(fallen, bell)?,
            }
        }
        match &mut self.way {
            Way::Alone(delivery) => Ok(delivery.pull(now)),
            Way::Joined(_) | Way::Between => Ok(None),
        }
    }

    fn part(&mut self, bell: &Bell) -> Result<(), Stop> {
        match &self.way {
            Way::Joined(joined) => {
                let fallen = joined.leave();
                self.go_on(fallen, bell)
            }
            Way::Alone(_) | Way::Between => Ok(()),
        }
    }

    fn go_on(&mut self, fallen: Fallen, bell: &Bell) -> Result<(), Stop> {
        match fallen {
            Fallen::At(stand) => {
                self.way = Way::Alone(Box::new(Delivery::at(stand, bell.clone())));
                Ok(())
            }
            Fallen::Missed => Err(Stop::Missed),
            Fallen::Gone => Err(Stop::Gone),
        }
    }

    /// Joins those who stand where it stands.
    fn join(&mut self, outlet: Arc<dyn Outlet>, bell: &Bell, fan_outs: &Arc<FanOuts>) {
        let delivery = match std::mem::replace(&mut self.way, Way::Between) {
            Way::Alone(delivery) => delivery,
            other => {
                self.way = other;
                return;
            }
        };
        let (dialect, bell) = (self.dialect.clone(), bell.clone());
        let listener = Listener { outlet, dialect, bell };
        self.way = match fan_outs.join(delivery, listener) {
            Ok(joined) => Way::Joined(joined),
            Err(delivery) => Way::Alone(delivery),
        };
    }
}
