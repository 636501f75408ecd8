//! What steps may hold, without looking at them: whoever comes back for one device of ten thousand passes
//! over nearly all that happened meanwhile.

use pulsestream_shared::event::{ClientId, DeviceId};

use crate::filter::{Audience, Filter};
use crate::parcel::Parcel;

/// 2,048 bits: of 256 devices one question in twenty is answered by a yes that means nothing.
const WORDS: usize = 32;

/// A Bloom filter of clients and devices.
#[derive(Default)]
pub(crate) struct Digest {
    words: [u64; WORDS],
    /// A step marks a hole, which everybody is told of.
    lost: bool,
}

impl Digest {
    pub(crate) fn add(&mut self, step: &Parcel) {
        self.lost |= step.lost;
        for event in &step.events {
            let marks = of_client(event.client).into_iter().chain(of_device(event.device));
            for (word, bit) in marks {
                if let Some(word) = self.words.get_mut(word) {
                    *word |= bit;
                }
            }
        }
    }

    /// False when none of the steps holds anything for that subscriber.
    pub(crate) fn may_concern(&self, filter: &Filter) -> bool {
        let of_audience = match filter.audience {
            Audience::Client(client) => self.has(of_client(client)),
            Audience::Everybody => true,
        };
        let devices = filter.devices();
        let of_devices = || devices.iter().any(|device| self.has(of_device(*device)));
        self.lost || (of_audience && (devices.is_empty() || of_devices()))
    }

    fn has(&self, marks: Marks) -> bool {
        let set =
            |(word, bit): &(usize, u64)| self.words.get(*word).is_some_and(|it| it & bit != 0);
        marks.iter().all(set)
    }
}

/// Words, and a bit of each.
type Marks = [(usize, u64); 2];

fn of_client(client: ClientId) -> Marks {
    marks(u64::from(client.0.cast_unsigned()))
}

fn of_device(device: DeviceId) -> Marks {
    let (high, low) = device.0.as_u64_pair();
    marks(high.rotate_left(32) ^ low)
}

/// Two of the bits, by a hash (of Fibonacci): ids may be counted up.
fn marks(of: u64) -> Marks {
    let hash = of.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    [hash >> 53, (hash >> 42) & 0x7FF].map(|bit| ((bit >> 6) as usize, 1 << (bit & 63)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::cursor::Cursor;
    use crate::range::tests::event;

    fn place() -> Arc<Cursor> {
        Arc::new(Cursor { epoch: Uuid::nil(), next: [1].into() })
    }

    fn step(devices: impl Iterator<Item = u128>) -> Parcel {
        let of_device = |device| {
            let mut event = event(1, 1);
            event.device = DeviceId(Uuid::from_u128(device));
            event
        };
        Parcel::new((1, Instant::now()), 0, devices.map(of_device).collect(), place())
    }

    fn asking(client: i32, devices: &[u128]) -> Filter {
        let devices = devices.iter().map(|device| DeviceId(Uuid::from_u128(*device))).collect();
        Filter::new(Audience::Client(ClientId(client)), devices, Vec::new())
    }

    #[test]
    fn what_it_holds_is_never_passed_over_and_what_it_does_not_hold_most_of_the_time() {
        let mut digest = Digest::default();
        digest.add(&step(1_000..1_256));
        assert!((1_000..1_256).all(|device| digest.may_concern(&asking(7, &[device]))));
        assert!(digest.may_concern(&asking(7, &[])) && digest.may_concern(&asking(7, &[3, 1_001])));
        let in_vain = (0..1_000).filter(|device| digest.may_concern(&asking(7, &[*device])));
        assert!(in_vain.count() < 150);
        assert!(!digest.may_concern(&asking(8, &[1_000])), "of another client");
    }

    #[test]
    fn a_hole_concerns_everybody() {
        let mut digest = Digest::default();
        assert!(!digest.may_concern(&asking(7, &[])));
        digest.add(&Parcel::lost((1, Instant::now()), 0, place()));
        assert!(digest.may_concern(&asking(7, &[1])));
    }
}
