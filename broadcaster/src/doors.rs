//! How many streams a client and an address may have open here, and how many are opened a second, so that
//! one of many does not take the others' room.
//!
//! A client's and an address's limit are theirs to keep: 429. The rate protects this process, and after an
//! outage nobody is to blame for it: 503.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pulsestream_shared::bucket::{Bucket, Rate};
use pulsestream_shared::config;
use pulsestream_shared::problem::{Code, Problem};
use tokio::time::Instant;

use crate::filter::Audience;

/// The limits, and who is inside.
pub(crate) struct Doors {
    per_client: usize,
    /// `None`: no limit.
    per_address: Option<usize>,
    rate: Option<Rate>,
    /// The rate's time is counted from here.
    begun_at: Instant,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    clients: HashMap<Audience, usize>,
    addresses: HashMap<IpAddr, usize>,
    opened: Bucket,
}

/// A connection of an address, of whichever client; counted until it is dropped.
pub(crate) struct Arrival {
    doors: Arc<Doors>,
    address: Option<IpAddr>,
}

/// An open stream of a client; counted until it is dropped.
pub(crate) struct Inside {
    arrival: Arrival,
    audience: Audience,
}

impl Doors {
    pub(crate) fn new(config: &config::Live) -> Arc<Self> {
        Arc::new(Self {
            per_client: config.streams_per_client,
            per_address: Some(config.streams_per_address).filter(|most| *most > 0),
            rate: Rate::new(config.opens_per_second, None),
            begun_at: Instant::now(),
            open: Mutex::default(),
        })
    }

    /// Lets one of that address come near.
    ///
    /// # Errors
    /// 429 when the address has as many as it may.
    pub(crate) fn arrive(self: &Arc<Self>, address: IpAddr) -> Result<Arrival, Problem> {
        let address = self.per_address.map(|most| (network(address), most));
        if let Some((address, most)) = address
            && !enter(&mut self.open().addresses, address, most)
        {
            return Err(too_many(format!(
                "your address has {most} streams open here, the most it may"
            )));
        }
        Ok(Arrival { doors: self.clone(), address: address.map(|(address, _)| address) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    /// Lets it in, as a stream of that client.
    ///
    /// # Errors
    /// 429 when the client has as many as it may, 503 when too many are opened now.
    pub(crate) fn enter(self, audience: Audience, now: Instant) -> Result<Inside, Problem> {
        let doors = self.doors.clone();
        let mut open = doors.open();
        if !enter(&mut open.clients, audience, doors.per_client) {
            drop(open); // the arrival's end wants it
            let most = doors.per_client;
            return Err(too_many(format!(
                "this client has {most} streams open here, the most it may"
            )));
        }
        let since = now.saturating_duration_since(doors.begun_at).as_nanos();
        let now_ns = u64::try_from(since).unwrap_or(u64::MAX);
        let taken = doors.rate.map_or(Ok(()), |rate| open.opened.take(1, rate, now_ns));
        drop(open);
        let inside = Inside { arrival: self, audience };
        match taken {
            Ok(()) => Ok(inside),
            Err(_) => Err(Problem::from(Code::Overloaded)
                .detail("too many streams are being opened here right now")),
        }
    }
}

fn too_many(detail: String) -> Problem {
    Problem::from(Code::TooManyStreams).detail(detail)
}

/// Counts one more; false when there are as many as there may be.
fn enter<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, most: usize) -> bool {
    let count = counts.entry(key).or_default();
    let fits = *count < most;
    *count += usize::from(fits);
    fits
}

fn leave<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// What is counted as one address: of IPv6 the network, because one host has all of its addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            leave(&mut self.doors.open().addresses, address);
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        leave(&mut self.arrival.doors.open().clients, self.audience);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pulsestream_shared::event::ClientId;

    use super::*;

    const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    fn doors(per_client: usize, per_address: usize, per_second: u32) -> Arc<Doors> {
        let mut config = config::load(None, std::iter::empty(), &[]).unwrap().config.live;
        config.streams_per_client = per_client;
        config.streams_per_address = per_address;
        config.opens_per_second = per_second;
        Doors::new(&config)
    }

    fn client(number: i32) -> Audience {
        Audience::Client(ClientId(number))
    }

    fn come(doors: &Arc<Doors>, address: IpAddr, audience: Audience) -> Result<Inside, Code> {
        let arrival = doors.arrive(address).map_err(|problem| problem.code())?;
        arrival.enter(audience, doors.begun_at).map_err(|problem| problem.code())
    }

    fn is_empty(doors: &Doors) -> bool {
        let open = doors.open();
        open.clients.is_empty() && open.addresses.is_empty()
    }

    #[test]
    fn a_client_at_its_most_is_turned_away_alone_and_let_in_when_one_has_left() {
        let doors = doors(2, 0, 0);
        let (one, two) = (come(&doors, HERE, client(7)), come(&doors, HERE, client(7)));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(come(&doors, HERE, client(7)).err(), Some(Code::TooManyStreams));
        assert!(come(&doors, HERE, client(8)).is_ok());
        drop(one);
        assert!(come(&doors, HERE, client(7)).is_ok());
        drop(two);
        assert!(is_empty(&doors));
    }

    #[test]
    fn an_address_is_counted_for_all_its_clients_and_a_refused_one_leaves_nothing() {
        let doors = doors(1, 2, 0);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let one = come(&doors, address("2001:db8::1"), client(7)).unwrap();
        let two = come(&doors, address("2001:db8::2"), client(8)).unwrap();
        let third = come(&doors, address("2001:db8::3"), client(9));
        assert_eq!(third.err(), Some(Code::TooManyStreams), "of the same network");
        assert!(come(&doors, address("2001:db8:0:1::1"), client(9)).is_ok());
        let refused = come(&doors, address("10.0.0.1"), client(7));
        assert_eq!(refused.err(), Some(Code::TooManyStreams), "the client's limit");
        assert!(come(&doors, address("::ffff:10.0.0.1"), client(9)).is_ok());
        drop((one, two));
        assert!(is_empty(&doors));
    }

    #[test]
    fn more_than_the_rate_come_a_little_later() {
        let doors = doors(100, 100, 10);
        for _ in 0..10 {
            assert!(come(&doors, HERE, client(7)).is_ok());
        }
        assert_eq!(come(&doors, HERE, client(8)).err(), Some(Code::Overloaded));
        assert!(is_empty(&doors), "the refused are not counted");
        let later = doors.begun_at + Duration::from_millis(100);
        assert!(doors.arrive(HERE).unwrap().enter(client(7), later).is_ok());
    }
}
