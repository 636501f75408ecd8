//! Bytes of bodies in flight: charged before a body is read, released when its request is answered.

use prometheus::IntGauge;

/// What all requests together may hold.
pub(crate) struct ByteBudget {
    in_flight: IntGauge,
    most: i64,
}

impl ByteBudget {
    /// At most so many bytes, shown on a gauge that nobody else moves.
    pub(crate) fn new(in_flight: IntGauge, most: u32) -> Self {
        Self { in_flight, most: most.into() }
    }

    /// Takes so many bytes until what it returns is dropped; `None` when there is no room.
    pub(crate) fn charge(&self, bytes: usize) -> Option<Charged<'_>> {
        let mut charged = Charged { budget: self, bytes: 0 };
        charged.raise_to(bytes).then_some(charged)
    }
}

/// Bytes that count until this is dropped.
pub(crate) struct Charged<'a> {
    budget: &'a ByteBudget,
    bytes: i64,
}

impl Charged<'_> {
    /// Charges what is missing to `bytes`, as a body turns out larger than declared, or decompressed.
    /// False, and nothing charged, when there is no room.
    #[must_use]
    pub(crate) fn raise_to(&mut self, bytes: usize) -> bool {
        let more = i64::try_from(bytes).unwrap_or(i64::MAX).saturating_sub(self.bytes);
        if more <= 0 {
            return true;
        }
        let in_flight = &self.budget.in_flight;
        if more > self.budget.most {
            return false;
        }
        in_flight.add(more);
        // Two that come together may both be refused: never both let in.
        let fits = in_flight.get() <= self.budget.most;
        if fits {
            self.bytes += more;
        } else {
            in_flight.sub(more);
        }
        fits
    }
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.budget.in_flight.sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(most: u32) -> ByteBudget {
        ByteBudget::new(IntGauge::new("bytes", "of the test").unwrap(), most)
    }

    #[test]
    fn bytes_count_until_they_are_dropped_and_over_the_bound_none_are_charged() {
        let budget = budget(100);
        let mut first = budget.charge(60).unwrap();
        assert!(budget.charge(41).is_none());
        let second = budget.charge(40).unwrap();
        assert!(!first.raise_to(61) && first.raise_to(60) && first.raise_to(10));
        drop(second);
        assert!(first.raise_to(100));
        assert!(budget.charge(1).is_none());
        drop(first);
        assert_eq!(budget.in_flight.get(), 0);
        assert!(budget.charge(usize::MAX).is_none());
        assert!(budget.charge(100).is_some());
    }
}
