//! A rate limit as arithmetic: a bucket that drains at a steady rate and refuses what would overfill it.
//!
//! This is the generic cell rate algorithm, kept as a *debt*: what was let through and has not drained
//! yet. A bucket without debt is worth nothing to remember, so forgetting it changes no answer. No clock
//! and no I/O: every call is told the time, in nanoseconds since whatever moment the caller chose. All
//! arithmetic is in whole billionths of an event, so a rate is met exactly, for ever.

/// How fast and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// So many events per second, and so many at once (as many as a second's when `None` or 0).
    /// `None` for a rate of 0, which everywhere means *unlimited*.
    pub fn new(per_second: u32, burst: Option<u32>) -> Option<Self> {
        let burst = burst.filter(|burst| *burst > 0).unwrap_or(per_second);
        (per_second > 0).then_some(Self { per_second, burst })
    }

    /// Events per second; at least 1.
    pub const fn per_second(self) -> u32 {
        self.per_second
    }

    /// Events at once; at least 1.
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// The most debt [`Bucket::charge`] makes: a burst and a second beyond what is ever let through, so
    /// that whatever was charged, a caller waits at most that long.
    pub const fn most_debt(self) -> Debt {
        Debt::of(self.burst).plus(Debt::of(self.burst)).plus(Debt::of(self.per_second))
    }
}

/// What was let through and has not drained yet, in billionths of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Debt(pub u64);

impl Debt {
    /// That many events.
    pub const fn of(events: u32) -> Self {
        Self(events as u64 * 1_000_000_000)
    }

    /// The sum.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self(self.0.saturating_add(more.0))
    }

    /// The difference, at least nothing.
    #[must_use]
    pub const fn minus(self, less: Self) -> Self {
        Self(self.0.saturating_sub(less.0))
    }
}

/// One limit's state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    debt: Debt,
    at_ns: u64,
}

impl Bucket {
    /// Lets `events` through, all or none.
    ///
    /// # Errors
    /// Nanoseconds after which they would pass, if nobody else came. More than the burst never pass,
    /// however long one waits: the caller looks first.
    pub fn take(&mut self, events: u32, rate: Rate, now_ns: u64) -> Result<(), u64> {
        self.drain(rate, now_ns);
        let debt = self.debt.plus(Debt::of(events));
        let excess = debt.minus(Debt::of(rate.burst));
        if excess == Debt::default() {
            self.debt = debt;
            Ok(())
        } else {
            Err(excess.0.div_ceil(rate.per_second.into()))
        }
    }

    /// Takes back what [`Bucket::take`] let through and nobody used.
    pub fn give_back(&mut self, events: u32) {
        self.debt = self.debt.minus(Debt::of(events));
    }

    /// Notes events that went through elsewhere, over the burst too; the debt stays below
    /// [`Rate::most_debt`]. Returns it.
    pub fn charge(&mut self, events: u32, rate: Rate, now_ns: u64) -> Debt {
        self.drain(rate, now_ns);
        self.debt = self.debt.plus(Debt::of(events)).min(rate.most_debt());
        self.debt
    }

    /// Replaces the debt, as of now.
    pub fn set(&mut self, debt: Debt, now_ns: u64) {
        *self = Self { debt, at_ns: now_ns };
    }

    /// Whole events that would pass now.
    pub fn left(&self, rate: Rate, now_ns: u64) -> u32 {
        let left = Debt::of(rate.burst).minus(self.debt_at(rate, now_ns));
        u32::try_from(left.0 / 1_000_000_000).unwrap_or(u32::MAX)
    }

    /// True when the bucket may be forgotten.
    pub fn is_empty(&self, rate: Rate, now_ns: u64) -> bool {
        self.debt_at(rate, now_ns) == Debt::default()
    }

    fn drain(&mut self, rate: Rate, now_ns: u64) {
        self.debt = self.debt_at(rate, now_ns);
        // Threads read the clock before they take the lock: the later one may come first.
        self.at_ns = self.at_ns.max(now_ns);
    }

    fn debt_at(&self, rate: Rate, now_ns: u64) -> Debt {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        self.debt.minus(Debt(elapsed_ns.saturating_mul(rate.per_second.into())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate::new(per_second, Some(burst)).unwrap()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let (mut bucket, rate) = (Bucket::default(), rate(10, 3));
        for left in [2, 1, 0] {
            assert_eq!(bucket.take(1, rate, 0), Ok(()));
            assert_eq!(bucket.left(rate, 0), left);
        }
        assert_eq!(bucket.take(1, rate, 0), Err(SECOND / 10));
        assert_eq!(bucket.take(1, rate, SECOND / 10 - 1), Err(1));
        assert_eq!(bucket.take(1, rate, SECOND / 10), Ok(()));
        assert_eq!(bucket.take(2, rate, SECOND / 10), Err(SECOND / 5));
    }

    #[test]
    fn a_rate_without_a_burst_has_that_of_a_second_and_a_rate_of_nothing_is_no_limit() {
        assert_eq!(Rate::new(7, None), Rate::new(7, Some(7)));
        assert_eq!(Rate::new(7, Some(0)), Rate::new(7, Some(7)));
        assert_eq!(Rate::new(0, Some(7)), None);
    }

    #[test]
    fn what_is_charged_elsewhere_delays_what_comes_here_and_never_for_longer_than_told() {
        let (mut bucket, rate) = (Bucket::default(), rate(10, 3));
        assert_eq!(bucket.charge(5, rate, 0), Debt::of(5));
        assert_eq!(bucket.take(1, rate, 0), Err(3 * SECOND / 10));
        assert_eq!(bucket.charge(u32::MAX, rate, 0), rate.most_debt());
        assert_eq!(bucket.take(3, rate, SECOND * 16 / 10), Ok(()));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let (mut bucket, rate) = (Bucket::default(), rate(u32::MAX, u32::MAX));
        assert_eq!(bucket.take(u32::MAX, rate, u64::MAX - SECOND), Ok(()));
        assert!(bucket.take(u32::MAX, rate, u64::MAX - SECOND).is_err());
        assert_eq!(
            bucket.charge(u32::MAX, rate, u64::MAX - SECOND),
            Debt::of(u32::MAX).plus(Debt::of(u32::MAX))
        );
        assert_eq!(bucket.take(u32::MAX, rate, u64::MAX), Err(SECOND));
    }

    /// The limit as a sentence: over every stretch of time that ends with this event, no more than the
    /// burst and the rate's share pass. Exact, and slow: it remembers everything.
    struct Model {
        rate: Rate,
        passed: Vec<(u64, u128)>,
    }

    impl Model {
        fn allows(&self, events: u32, now_ns: u64) -> bool {
            let mut sum = u128::from(events) * u128::from(SECOND);
            let fits = |sum: u128, since: u64| {
                let drained = u128::from(now_ns - since) * u128::from(self.rate.per_second);
                sum <= u128::from(self.rate.burst) * u128::from(SECOND) + drained
            };
            fits(sum, now_ns)
                && self.passed.iter().rev().all(|(at_ns, units)| {
                    sum += units;
                    fits(sum, *at_ns)
                })
        }
    }

    proptest! {
        #[test]
        fn exactly_what_the_limit_allows_passes(
            per_second in 1_u32..5_000,
            burst in 1_u32..200,
            steps in prop::collection::vec((0_u64..400_000_000, 0_u32..200), 1..200),
        ) {
            let rate = rate(per_second, burst);
            let mut model = Model { rate, passed: Vec::new() };
            let (mut bucket, mut now_ns) = (Bucket::default(), 0);
            for (pause_ns, events) in steps {
                now_ns += pause_ns;
                let taken = bucket.take(events, rate, now_ns);
                prop_assert_eq!(taken.is_ok(), model.allows(events, now_ns));
                match taken {
                    Ok(()) => model.passed.push((now_ns, u128::from(events) * u128::from(SECOND))),
                    Err(wait_ns) if events <= burst => {
                        prop_assert!(model.allows(events, now_ns + wait_ns));
                        prop_assert!(!model.allows(events, now_ns + wait_ns - 1));
                    }
                    Err(_) => prop_assert!(!model.allows(events, now_ns + 3_600 * SECOND)),
                }
                let left = bucket.left(rate, now_ns);
                prop_assert!(model.allows(left, now_ns) && !model.allows(left + 1, now_ns));
            }
        }

        #[test]
        fn what_is_given_back_was_never_taken(first in 0_u32..50, second in 0_u32..50, now_ns: u32) {
            let rate = rate(100, 100);
            let mut bucket = Bucket::default();
            prop_assert!(bucket.take(first, rate, now_ns.into()).is_ok());
            let before = bucket;
            prop_assert!(bucket.take(second, rate, now_ns.into()).is_ok());
            bucket.give_back(second);
            prop_assert_eq!(bucket, before);
        }
    }
}
