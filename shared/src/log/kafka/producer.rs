//! Append: one idempotent producer for the process, one completion for a whole batch.
//!
//! librdkafka reports every record; the reports of one batch are gathered in [`Ballots`], and the last one
//! wakes the caller. One thread serves the reports and, when librdkafka declares its producer
//! dead (a fatal error of the idempotence protocol), puts a new one in its place.
//!
//! One producer is enough although a leader may hang: when a record times out, librdkafka lets all that is
//! in flight come home and bumps its epoch before it sends again, and that costs the other partitions one
//! pause of 0.2 to 1 s (a broker of three behind a black hole), not the seconds of the hung one.
//!
//! What failed is told apart by code alone: the crate does not show librdkafka's own verdict on whether
//! a record may have been persisted, so only codes that are the same on every attempt count as refusal.

use std::iter::repeat_n;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, Thread};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
};
use rdkafka::statistics::Statistics;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::KafkaConfig;
use super::ballots::Ballots;
use super::client::{self, unavailable};
use super::statistics::{self, Client, ClientMetrics, Told};
use crate::clock;
use crate::log::{AppendError, AppendResult, Headers, LogError, NewRecord};

/// How long the thread waits for reports before it looks around.
const POLL: Duration = Duration::from_millis(250);
/// Other news than reports that is served after each wait while nothing is appended.
const NEWS: usize = 16;

/// Accepts batches. Dropping it lets what was accepted go out; it takes nothing more.
pub(super) struct Producer {
    shared: Arc<Shared>,
    /// Serves the reports.
    thread: Thread,
    append_timeout: Duration,
}

struct Shared {
    /// `None` once stopped. Senders hold the read side while they hand over a batch, never longer.
    current: RwLock<Option<BaseProducer<Reports>>>,
    stopping: AtomicBool,
    ballots: Arc<Ballots>,
    settings: ClientConfig,
    metrics: ClientMetrics,
    /// What a stopping producer may take to deliver the rest.
    message_timeout: Duration,
}

impl Producer {
    /// Starts the producer and its thread; connecting happens behind.
    pub(super) fn start(
        config: &KafkaConfig,
        metrics: &ClientMetrics,
        token: TaskTrackerToken,
    ) -> Result<Self, LogError> {
        let settings = settings(config);
        let ballots = Arc::new(Ballots::default());
        let first = create(&settings, metrics, &ballots).map_err(unavailable)?;
        let shared = Arc::new(Shared {
            current: RwLock::new(Some(first)),
            stopping: AtomicBool::new(false),
            ballots,
            settings,
            metrics: metrics.clone(),
            message_timeout: config.message_timeout,
        });
        let for_thread = Arc::clone(&shared);
        let started = thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || {
                for_thread.serve();
                drop(token);
            })
            .map_err(unavailable)?;
        let thread = started.thread().clone();
        Ok(Self { shared, thread, append_timeout: config.append_timeout })
    }

    /// See [`crate::log::EventLog::append`].
    pub(super) async fn append(&self, topic: &str, records: &[NewRecord]) -> Vec<AppendResult> {
        if records.is_empty() {
            return Vec::new();
        }
        let ballots = &self.shared.ballots;
        let (first, settled) = ballots.open(records.len());
        self.shared.hand_over(topic, records, first);
        self.thread.unpark();
        match tokio::time::timeout(self.append_timeout, settled).await {
            Ok(Ok(results)) => results,
            _ => ballots.give_up(first),
        }
    }

    /// Takes no more; the thread delivers the rest, for `message_timeout` at most, and ends.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Gives every record to librdkafka, or answers for it. Never blocks.
    fn hand_over(&self, topic: &str, records: &[NewRecord], first: usize) {
        let guard = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let producer = guard.as_ref().filter(|_| !self.stopping.load(Ordering::Acquire));
        let Some(producer) = producer else {
            let closed = AppendError::Unavailable("the producer is closed".to_owned());
            return self.ballots.settle_from(first, &closed);
        };
        // Told, or librdkafka asks the clock for each record. The broker's own time is what counts.
        let timestamp = Some(clock::unix_ms());
        for ((number, record), headers) in (first..).zip(records).zip(native_headers(records)) {
            let record = BaseRecord { timestamp, ..base_record(topic, record, headers, number) };
            let Err((error, _)) = producer.send(record) else { continue };
            let error = verdict_on_entry(&error);
            if matches!(error, AppendError::Unavailable(_)) {
                // No later record of the batch may overtake this one.
                return self.ballots.settle_from(number, &error);
            }
            self.ballots.settle(number, Err(error));
        }
    }

    /// Serves reports until stopped.
    fn serve(&self) {
        let mut last_opened = 0;
        while !self.stopping.load(Ordering::Acquire) {
            let idle = self.ballots.are_idle_since(&mut last_opened);
            let dead = if idle { self.rest() } else { self.poll(POLL) };
            if dead {
                self.replace();
            }
        }
        let last = self.current.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(producer) = last
            && let Err(error) = producer.flush(self.message_timeout)
        {
            tracing::warn!(%error, "records were still undelivered when the producer closed");
        }
    }

    /// Waits until something is appended, and serves what came meanwhile; true as below. Not by a poll: librdkafka's
    /// binding spins through the last millisecond of each wait.
    fn rest(&self) -> bool {
        thread::park_timeout(POLL);
        (0..NEWS).any(|_| self.poll(Duration::ZERO))
    }

    /// Serves reports for so long; true when the producer is beyond repair. Asked for, because the fatal
    /// error is not told to the context in every case.
    fn poll(&self, patience: Duration) -> bool {
        let guard = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = guard.as_ref() else { return false };
        producer.poll(patience);
        producer.client().fatal_error().is_some()
    }

    /// Puts a new producer in the place of a dead one. What the dead one had outstanding is answered as
    /// unknown when it is dropped, here, away from the runtime.
    fn replace(&self) {
        let next = match create(&self.settings, &self.metrics, &self.ballots) {
            Ok(next) => next,
            Err(error) => return tracing::warn!(%error, "no new producer could be made yet"),
        };
        let mut guard = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let dead = guard.replace(next);
        drop(guard);
        if let Some(dead) = dead {
            let cause = dead.client().fatal_error().map(|(_, reason)| reason);
            tracing::warn!(cause, outstanding = dead.in_flight_count(), "replaced the producer");
        }
    }
}

fn create(
    settings: &ClientConfig,
    metrics: &ClientMetrics,
    ballots: &Arc<Ballots>,
) -> Result<BaseProducer<Reports>, KafkaError> {
    let told = Told::new(Client::Producer, metrics);
    BaseProducer::from_config_and_context(settings, Reports { told, ballots: ballots.clone() })
}

fn settings(config: &KafkaConfig) -> ClientConfig {
    let linger_us = u32::try_from(config.linger.as_micros()).unwrap_or(u32::MAX);
    let linger_ms = f64::from(linger_us) / 1_000.0;
    let mut settings = client::settings(config);
    settings
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", IN_FLIGHT)
        .set("partitioner", "murmur2_random")
        .set("linger.ms", linger_ms.to_string())
        .set("message.timeout.ms", config.message_timeout.as_millis().to_string())
        .set("request.timeout.ms", "3000")
        .set("batch.num.messages", "10000")
        .set("batch.size", "1000000")
        .set("compression.type", "none")
        .set("queue.buffering.max.messages", "200000")
        .set("queue.buffering.max.kbytes", "131072")
        .set("statistics.interval.ms", statistics::INTERVAL_MS);
    settings
}

/// Requests under way to one broker; 5 is the most that idempotence allows.
const IN_FLIGHT: &str = "5";

fn base_record<'a>(
    topic: &'a str,
    record: &'a NewRecord,
    headers: Option<OwnedHeaders>,
    number: usize,
) -> BaseRecord<'a, [u8], [u8], usize> {
    BaseRecord {
        topic,
        partition: Some(record.partition),
        payload: Some(&record.value),
        key: record.key.as_deref(),
        timestamp: None,
        headers,
        delivery_opaque: number,
    }
}

/// The headers of each record as librdkafka wants them: a list for itself. Those of a batch are the same, and a copy is
/// cheaper than a list built anew.
fn native_headers(records: &[NewRecord]) -> impl Iterator<Item = Option<OwnedHeaders>> {
    let runs = records.chunk_by(|left, right| left.headers == right.headers);
    runs.flat_map(|run| {
        let headers = run.first().and_then(|record| native(&record.headers));
        repeat_n(headers, run.len())
    })
}

fn native(headers: &Headers) -> Option<OwnedHeaders> {
    let add = |native: OwnedHeaders, (key, value)| native.insert(Header { key, value });
    (!headers.is_empty()).then(|| headers.iter().fold(OwnedHeaders::new(), add))
}

/// librdkafka did not take the record: it is certainly not in the log.
fn verdict_on_entry(error: &KafkaError) -> AppendError {
    let text = error.to_string();
    match client::code(error) {
        Some(code) if is_refusal(code) => AppendError::Refused(text),
        _ => AppendError::Unavailable(text),
    }
}

/// librdkafka took the record and gave up on it.
fn verdict_on_delivery(error: &KafkaError) -> AppendError {
    let text = error.to_string();
    match client::code(error) {
        Some(code) if is_refusal(code) => AppendError::Refused(text),
        // Timed out, purged, fatal, no authorization (any more), not enough replicas: an earlier attempt
        // may have been written although its answer was lost.
        _ => AppendError::Unknown(text),
    }
}

/// Codes that speak of the record itself, or of a partition that was never there, so that every attempt
/// met the same answer.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::UnsupportedForMessageFormat
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
    )
}

/// Receives what librdkafka has to say.
struct Reports {
    told: Arc<Told>,
    ballots: Arc<Ballots>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::log_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.told.tell(&statistics);
    }
}

impl ProducerContext<NoCustomPartitioner> for Reports {
    /// The record's number.
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, number: usize) {
        let result = match report {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(verdict_on_delivery(error)),
        };
        self.ballots.settle(number, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_after_one_that_found_the_queue_full_are_not_tried() {
        let ballots = Ballots::default();
        let (first, mut settled) = ballots.open(3);
        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        ballots.settle_from(first + 1, &verdict_on_entry(&full));
        ballots.settle(first, Ok(7));
        let results = settled.try_recv().unwrap();
        let unavailable =
            |result: &AppendResult| matches!(result, Err(AppendError::Unavailable(_)));
        assert!(matches!(results[0], Ok(7)) && results[1..].iter().all(unavailable));
    }

    #[test]
    fn only_a_verdict_on_the_record_itself_is_a_refusal() {
        let verdict = |code| verdict_on_delivery(&KafkaError::MessageProduction(code));
        assert!(matches!(verdict(RDKafkaErrorCode::MessageSizeTooLarge), AppendError::Refused(_)));
        for code in [
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::PurgeQueue,
            RDKafkaErrorCode::PurgeInflight,
            RDKafkaErrorCode::Fatal,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::UnknownTopicOrPartition,
        ] {
            assert!(matches!(verdict(code), AppendError::Unknown(_)), "{code}");
        }
    }
}
