//! Is it repeated, out of order, or is something missing? Pure state, no clock, no I/O.
//!
//! Thousands of sockets each remember every event they saw, so ids are turned into small numbers once
//! for the whole process ([`Interner`]) and a socket keeps one bit per event and one number per device.

use std::collections::HashMap;

use uuid::Uuid;

/// Gives each event id and each device id a small number, in order of first sight on any socket.
#[derive(Debug, Default)]
pub(super) struct Interner {
    events: HashMap<Uuid, usize>,
    devices: HashMap<Uuid, usize>,
}

impl Interner {
    /// The numbers of this event and this device.
    pub(super) fn numbers(&mut self, event: Uuid, device: Uuid) -> (usize, usize) {
        let next = self.events.len();
        let event = *self.events.entry(event).or_insert(next);
        let next = self.devices.len();
        (event, *self.devices.entry(device).or_insert(next))
    }

    /// How many different events were seen.
    pub(super) fn events(&self) -> usize {
        self.events.len()
    }
}

/// What one event on one socket turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The id came before on this socket, on whatever connection.
    pub(super) repeat: bool,
    /// The id came before on this connection.
    pub(super) repeat_in_connection: bool,
    /// The device's sequence number is not above all before it on this connection.
    pub(super) out_of_order: bool,
    /// How many sequence numbers of the device were jumped over on this connection.
    pub(super) missing: u64,
}

/// What one socket has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    on_socket: Bits,
    on_connection: Bits,
    /// Highest sequence number on this connection by device number.
    highest: Vec<Option<i64>>,
}

impl Seen {
    /// A new connection begins: order and holes are judged afresh, repeats on the socket are not.
    pub(super) fn reconnected(&mut self) {
        self.on_connection = Bits::default();
        self.highest.clear();
    }

    pub(super) fn check(&mut self, event: usize, device: usize, seq: i64) -> Verdict {
        if self.highest.len() <= device {
            self.highest.resize(device + 1, None);
        }
        let highest = &mut self.highest[device];
        let verdict = Verdict {
            repeat: !self.on_socket.insert(event),
            repeat_in_connection: !self.on_connection.insert(event),
            out_of_order: highest.is_some_and(|highest| seq <= highest),
            missing: highest.map_or(0, |highest| {
                u64::try_from(seq.saturating_sub(highest).saturating_sub(1)).unwrap_or(0)
            }),
        };
        *highest = Some(highest.map_or(seq, |highest| highest.max(seq)));
        verdict
    }
}

/// A growing set of small numbers.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    /// True when it was not in the set.
    fn insert(&mut self, number: usize) -> bool {
        let (word, bit) = (number / 64, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Event numbers equal sequence numbers, one device.
    fn verdicts(seqs: &[i64]) -> Vec<Verdict> {
        let mut seen = Seen::default();
        seqs.iter().map(|&seq| seen.check(seq as usize, 0, seq)).collect()
    }

    #[test]
    fn a_clean_run_from_the_middle_of_a_stream_raises_nothing() {
        assert!(verdicts(&[70, 71, 72]).iter().all(|verdict| *verdict == Verdict::default()));
    }

    #[test]
    fn a_repeat_is_also_out_of_order_and_a_late_one_fills_no_hole() {
        let all = verdicts(&[1, 2, 2, 5, 4, 6]);
        let repeats: Vec<_> = all.iter().map(|verdict| verdict.repeat_in_connection).collect();
        assert_eq!(repeats, [false, false, true, false, false, false]);
        let disorder: Vec<_> = all.iter().map(|verdict| verdict.out_of_order).collect();
        assert_eq!(disorder, [false, false, true, false, true, false]);
        assert_eq!(all.iter().map(|verdict| verdict.missing).sum::<u64>(), 2, "3 and 4");
    }

    #[test]
    fn a_reconnect_forgets_order_but_not_ids() {
        let mut seen = Seen::default();
        seen.check(7, 0, 7);
        seen.reconnected();
        let again = seen.check(7, 0, 7);
        assert_eq!(again, Verdict { repeat: true, ..Verdict::default() });
    }

    #[test]
    fn numbers_are_given_in_order_of_first_sight() {
        let mut interner = Interner::default();
        let [a, b, device] = [1, 2, 3].map(Uuid::from_u128);
        assert_eq!(interner.numbers(a, device), (0, 0));
        assert_eq!(interner.numbers(b, device), (1, 0));
        assert_eq!(interner.numbers(a, b), (0, 1));
    }
}
