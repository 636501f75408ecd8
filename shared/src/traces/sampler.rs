//! Which requests are traced.
//!
//! One in so many by chance. A caller that traces its own request and says so in `traceparent` is followed:
//! sampled there, sampled here, and not there, not here. Anybody can say so, therefore only so many a second
//! are taken at their word; the rest are left to chance, in the caller's trace all the same.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rand::RngExt as _;

use super::TraceParent;
use crate::bucket::{Bucket, Rate};

pub(super) struct Sampler {
    /// 0: none by chance.
    one_in: u32,
    /// `None`: nobody is taken at their word.
    asked: Option<Rate>,
    taken: Mutex<Bucket>,
    since: Instant,
}

impl Sampler {
    pub(super) fn new(one_in: u32, asked_per_second: u32) -> Self {
        Self {
            one_in,
            asked: Rate::new(asked_per_second, None),
            taken: Mutex::default(),
            since: Instant::now(),
        }
    }

    /// Whether a request with that parent is traced.
    pub(super) fn takes(&self, parent: Option<TraceParent>) -> bool {
        match parent {
            None => self.draws(),
            Some(parent) => parent.is_sampled() && (self.believes() || self.draws()),
        }
    }

    fn draws(&self) -> bool {
        self.one_in > 0 && rand::rng().random_ratio(1, self.one_in)
    }

    fn believes(&self) -> bool {
        let Some(rate) = self.asked else { return false };
        let now_ns = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.take(1, rate, now_ns).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(flags: &str) -> Option<TraceParent> {
        let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn a_caller_is_followed_either_way_but_cannot_ask_for_more_than_the_bound() {
        let never_by_chance = Sampler::new(0, 20);
        assert!(!never_by_chance.takes(None));
        let taken = (0..1_000).filter(|_| never_by_chance.takes(parent("01"))).count();
        assert!((20..60).contains(&taken), "{taken}");
        let always = Sampler::new(1, 0);
        assert!(always.takes(None) && always.takes(parent("01")));
        assert!(!always.takes(parent("00")));
    }

    #[test]
    fn chance_takes_one_in_so_many() {
        let sampler = Sampler::new(100, 0);
        let taken = (0..100_000).filter(|_| sampler.takes(None)).count();
        assert!((800..1_200).contains(&taken), "{taken}");
    }
}
