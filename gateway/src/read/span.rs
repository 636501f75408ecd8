//! Which time a query covers.

use pulsestream_shared::config::Config;
use pulsestream_shared::store::query::Span;

use super::params::Params;
use crate::body::milliseconds;

const DAY_MS: i64 = 86_400_000;

/// How much time one query may cover, and how far back it looks by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    max_span_ms: i64,
    look_back_ms: i64,
}

impl Bounds {
    /// A day beyond the retention, because whole days are dropped; at most the longest span.
    pub(crate) fn new(config: &Config) -> Self {
        let max_span_ms = milliseconds(config.read.max_span);
        let kept_ms = (i64::from(config.store.retention_days) + 1) * DAY_MS;
        Self { max_span_ms, look_back_ms: kept_ms.min(max_span_ms) }
    }

    /// Begin of the day up to which a query without a begin looks back. A whole day: its partition is
    /// then read whole or not at all, and no index entry in it has to be judged by its time.
    pub(super) fn oldest_ms(&self, now_ms: i64) -> i64 {
        (now_ms - self.look_back_ms).div_euclid(DAY_MS) * DAY_MS
    }

    /// The span from what was given of it; faults are noted with the parameters.
    ///
    /// Without `to` it ends a day ahead, the most an event can be; without `from` it begins where the
    /// store does, or so long before `to` as a span may be.
    pub(super) fn span(
        &self,
        params: &mut Params<'_>,
        (from_ms, to_ms): (Option<i64>, Option<i64>),
        now_ms: i64,
    ) -> Span {
        let end_ms = to_ms.unwrap_or(now_ms + DAY_MS);
        let start_ms =
            from_ms.unwrap_or_else(|| self.oldest_ms(now_ms).max(end_ms - self.max_span_ms));
        let too_long = end_ms.saturating_sub(start_ms) > self.max_span_ms;
        match (from_ms, to_ms) {
            (Some(from_ms), Some(to_ms)) if from_ms >= to_ms => {
                params.refuse("to", "must be greater than from");
            }
            (Some(_), None) if too_long => {
                let message =
                    "is required: from is further back than one query may cover, which is";
                params.refuse("to", format!("{message} {} ms", self.max_span_ms));
            }
            (Some(_), Some(_)) if too_long => {
                params.refuse("to", format!("must be at most {} ms after from", self.max_span_ms));
            }
            _ => {}
        }
        Span { from_ms: start_ms.min(end_ms), to_ms: end_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_795_255_200_000;
    const BOUNDS: Bounds = Bounds { max_span_ms: 31 * DAY_MS, look_back_ms: 15 * DAY_MS };

    fn span(from_ms: Option<i64>, to_ms: Option<i64>) -> Option<Span> {
        let mut params = Params::parse(None, &[]);
        let span = BOUNDS.span(&mut params, (from_ms, to_ms), NOW_MS);
        params.check().ok().map(|()| span)
    }

    #[test]
    fn what_is_not_given_is_all_that_can_be_stored() {
        let (oldest_ms, ahead_ms) = (BOUNDS.oldest_ms(NOW_MS), NOW_MS + DAY_MS);
        assert!(oldest_ms % DAY_MS == 0 && oldest_ms <= NOW_MS - 15 * DAY_MS);
        assert_eq!(span(None, None), Some(Span { from_ms: oldest_ms, to_ms: ahead_ms }));
        assert_eq!(span(Some(NOW_MS), None), Some(Span { from_ms: NOW_MS, to_ms: ahead_ms }));
        assert_eq!(span(None, Some(NOW_MS)), Some(Span { from_ms: oldest_ms, to_ms: NOW_MS }));
        assert_eq!(span(None, Some(5)), Some(Span { from_ms: 5, to_ms: 5 }), "nothing is that old");
    }

    #[test]
    fn a_span_is_forward_and_bounded() {
        assert_eq!(span(Some(5), Some(5)), None);
        assert_eq!(span(Some(6), Some(5)), None);
        assert!(span(Some(0), Some(31 * DAY_MS)).is_some());
        assert_eq!(span(Some(0), Some(31 * DAY_MS + 1)), None);
        assert_eq!(span(Some(0), None), None, "all since 1970");
    }
}
