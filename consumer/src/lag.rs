//! How far the store is behind the log, looked at every few seconds; now and then the dead letters it
//! holds, and its days.

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
/// Looks at the lag between two looks at the days: an hour.
const LOOKS_PER_UPKEEP: u32 = 720;
/// Looks at the lag between two counts of dead letters, which read their whole table: a minute.
const LOOKS_PER_COUNT: u32 = 12;

pub(crate) struct Lag {
    engine: Engine,
    metrics: Arc<ConsumerMetrics>,
}

impl Lag {
    pub(crate) fn new(context: &Context, metrics: Arc<ConsumerMetrics>) -> Self {
        Self { engine: context.engine.clone(), metrics }
    }

    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut looks = interval(LAG_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0;
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            if count % LOOKS_PER_UPKEEP == 0 {
                self.maintain().await;
            }
            if count % LOOKS_PER_COUNT == 0 {
                self.count_letters().await;
            }
            count += 1;
            if let Err(reason) = self.look().await {
                tracing::debug!(%reason, "lag not known");
            }
        }
    }

    async fn maintain(&self) {
        let now_ms = clock::unix_ms();
        match self.engine.store.maintain(now_ms).await {
            Ok(found) => {
                #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds")]
                self.metrics.horizon_seconds.set((found.horizon_ms - now_ms) as f64 / 1e3);
                tracing::info!(dropped_days = found.dropped_days, "store maintained");
            }
            Err(error) => tracing::warn!(%error, "store not maintained"),
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
