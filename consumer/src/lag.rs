//! How far the store is behind the log and its days reach, looked at every few seconds; now and then the dead
//! letters it holds.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::clock;
use pulsestream_shared::engine::Engine;
use pulsestream_shared::log::{Bounds, ReadLimit, STORE_GROUP, Topic};
use pulsestream_shared::service::Context;
use pulsestream_shared::store::{DeadReason, LetterFilter, Progress};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::ConsumerMetrics;

const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// Looks at the lag between two counts of dead letters, which read their whole table: a minute.
const LOOKS_PER_COUNT: u32 = 12;

pub(crate) struct Lag {
    engine: Engine,
    metrics: Arc<ConsumerMetrics>,
    upkeep: Upkeep,
}

impl Lag {
    pub(crate) fn new(context: &Context, metrics: Arc<ConsumerMetrics>) -> Self {
        Self { engine: context.engine.clone(), metrics, upkeep: Upkeep::default() }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = interval(LAG_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            if self.upkeep.is_due(clock::unix_ms()) {
                self.maintain().await;
            }
            self.metrics.horizon_seconds.set(self.upkeep.seconds_left(clock::unix_ms()));
            if count % LOOKS_PER_COUNT == 0 {
                self.count_letters().await;
            }
            count += 1;
            if let Err(reason) = self.look().await {
                tracing::debug!(%reason, "lag not known");
            }
        }
    }

    async fn maintain(&mut self) {
        let now_ms = clock::unix_ms();
        match self.engine.store.maintain(now_ms).await {
            Ok(found) => {
                self.upkeep.done(now_ms, found.horizon_ms);
                tracing::info!(dropped_days = found.dropped_days, "store maintained");
            }
            Err(error) => {
                self.upkeep.failed(now_ms);
                tracing::warn!(%error, "store not maintained");
            }
        }
    }

    async fn count_letters(&self) {
        match self.engine.letters.count(&LetterFilter::default()).await {
            Ok(counts) => DeadReason::ALL.iter().for_each(|reason| {
                let mut counts = counts.iter();
                let count = counts.find(|(word, _)| word == reason.as_str());
                let count = count.map_or(0, |(_, count)| i64::try_from(*count).unwrap_or(i64::MAX));
                self.metrics.letters.with_label_values(&[reason.as_str()]).set(count);
            }),
            Err(error) => tracing::debug!(%error, "dead letters not counted"),
        }
    }

    async fn look(&self) -> Result<(), String> {
        let bounds = self.engine.log.bounds(Topic::Raw).await.map_err(|error| error.to_string())?;
        let places =
            self.engine.store.progress(STORE_GROUP).await.map_err(|error| error.to_string())?;
        for place in &places {
            let index = usize::try_from(place.partition).ok();
            if let Some(bounds) = index.and_then(|index| bounds.get(index)) {
                self.note(place, *bounds).await?;
            }
        }
        Ok(())
    }

    async fn note(&self, place: &Progress, bounds: Bounds) -> Result<(), String> {
        let label = place.partition.to_string();
        let records = (bounds.next - place.next.max(bounds.first)).max(0);
        self.metrics.lag_records.with_label_values(&[&label]).set(records);
        let mut seconds = 0;
        if records > 0 {
            let one = ReadLimit { records: 1, bytes: 1 };
            let oldest = self.engine.log.read(Topic::Raw, place.partition, place.next, one).await;
            let oldest = oldest.map_err(|error| error.to_string())?;
            let age_ms = oldest.first().map_or(0, |record| clock::unix_ms() - record.logged_at_ms);
            seconds = age_ms.max(0) / 1_000;
        }
        self.metrics.lag_seconds.with_label_values(&[&label]).set(seconds);
        Ok(())
    }
}

/// When the days are to be looked after, and how far they reach. While nobody succeeds at it, what is left of
/// them shrinks as the clock goes: the alarm must not depend on the work that failed.
#[derive(Debug, Default)]
struct Upkeep {
    due_ms: i64,
    /// 0 until it is known.
    horizon_ms: i64,
}

impl Upkeep {
    const EVERY_MS: i64 = 3_600_000;
    const AGAIN_MS: i64 = 60_000;

    fn is_due(&self, now_ms: i64) -> bool {
        now_ms >= self.due_ms
    }

    fn done(&mut self, now_ms: i64, horizon_ms: i64) {
        *self = Self { due_ms: now_ms + Self::EVERY_MS, horizon_ms };
    }

    fn failed(&mut self, now_ms: i64) {
        self.due_ms = now_ms + Self::AGAIN_MS;
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds")]
    fn seconds_left(&self, now_ms: i64) -> f64 {
        (self.horizon_ms - now_ms).max(0) as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    #[test]
    fn a_horizon_that_nobody_moves_comes_nearer_until_the_alarm() {
        let mut upkeep = Upkeep::default();
        assert_eq!(upkeep.seconds_left(DAY_MS), 0.0, "not known yet");
        upkeep.done(0, 5 * DAY_MS);
        let mut alarm_ms = None;
        for now_ms in (0..6 * DAY_MS).step_by(60_000).filter(|now_ms| *now_ms > 0) {
            if upkeep.is_due(now_ms) {
                upkeep.failed(now_ms);
            }
            if upkeep.seconds_left(now_ms) < 2.0 * 86_400.0 {
                alarm_ms.get_or_insert(now_ms);
            }
        }
        assert_eq!(alarm_ms, Some(3 * DAY_MS + 60_000));
    }

    #[test]
    fn days_are_looked_after_every_hour_and_a_minute_after_a_failure() {
        let mut upkeep = Upkeep::default();
        assert!(upkeep.is_due(0));
        upkeep.done(0, DAY_MS);
        assert!(!upkeep.is_due(Upkeep::EVERY_MS - 1) && upkeep.is_due(Upkeep::EVERY_MS));
        upkeep.failed(Upkeep::EVERY_MS);
        let again_ms = Upkeep::EVERY_MS + Upkeep::AGAIN_MS;
        assert!(!upkeep.is_due(again_ms - 1) && upkeep.is_due(again_ms));
    }
}
