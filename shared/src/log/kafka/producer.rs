//! Append: one idempotent producer for the process, one completion for a whole batch.
//!
//! librdkafka reports every record; the reports of one batch are gathered in its [`Ballot`], and the
//! last one wakes the caller. One thread serves the reports and, when librdkafka declares its producer
//! dead (a fatal error of the idempotence protocol), puts a new one in its place.
//!
//! One producer is enough although a leader may hang: when a record times out, librdkafka lets all that is
//! in flight come home and bumps its epoch before it sends again, and that costs the other partitions one
//! pause of 0.2 to 1 s (a broker of three behind a black hole), not the seconds of the hung one.
//!
//! What failed is told apart by code alone: the crate does not show librdkafka's own verdict on whether
//! a record may have been persisted, so only codes that are the same on every attempt count as refusal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext,
};
use rdkafka::statistics::Statistics;
use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::KafkaConfig;
use super::client::{self, unavailable};
use super::statistics::{self, Client, ClientMetrics, Told};
use crate::log::{AppendError, AppendResult, Headers, LogError, NewRecord};

/// How long the thread waits for reports before it looks around. librdkafka's binding spins through the
/// last millisecond of each wait, so it is not shorter.
const POLL: Duration = Duration::from_millis(250);

/// Accepts batches. Dropping it lets what was accepted go out; it takes nothing more.
pub(super) struct Producer {
    shared: Arc<Shared>,
    append_timeout: Duration,
}

struct Shared {
    /// `None` once stopped. Senders hold the read side while they hand over a batch, never longer.
    current: RwLock<Option<BaseProducer<Reports>>>,
    stopping: AtomicBool,
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
        let first = create(&settings, metrics).map_err(unavailable)?;
        let shared = Arc::new(Shared {
            current: RwLock::new(Some(first)),
            stopping: AtomicBool::new(false),
            settings,
            metrics: metrics.clone(),
            message_timeout: config.message_timeout,
        });
        let for_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("kafka-producer".to_owned())
            .spawn(move || {
                for_thread.serve();
                drop(token);
            })
            .map_err(unavailable)?;
        Ok(Self { shared, append_timeout: config.append_timeout })
    }

    /// See [`crate::log::EventLog::append`].
    pub(super) async fn append(&self, topic: &str, records: &[NewRecord]) -> Vec<AppendResult> {
        if records.is_empty() {
            return Vec::new();
        }
        let (ballot, settled) = Ballot::open(records.len());
        self.shared.hand_over(topic, records, &ballot);
        match tokio::time::timeout(self.append_timeout, settled).await {
            Ok(Ok(results)) => results,
            _ => ballot.give_up(),
        }
    }

    /// Takes no more; the thread delivers the rest, for `message_timeout` at most, and ends.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Gives every record to librdkafka, or answers for it. Never blocks.
    fn hand_over(&self, topic: &str, records: &[NewRecord], ballot: &Arc<Ballot>) {
        let guard = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let producer = guard.as_ref().filter(|_| !self.stopping.load(Ordering::Acquire));
        let Some(producer) = producer else {
            let closed = AppendError::Unavailable("the producer is closed".to_owned());
            return ballot.settle_from(0, &closed);
        };
        for (index, record) in records.iter().enumerate() {
            let ticket = Box::new(Ticket { ballot: Arc::clone(ballot), index });
            let Err((error, _)) = producer.send(base_record(topic, record, ticket)) else {
                continue;
            };
            let error = verdict_on_entry(&error);
            if matches!(error, AppendError::Unavailable(_)) {
                // No later record of the batch may overtake this one.
                return ballot.settle_from(index, &error);
            }
            ballot.settle(index, Err(error));
        }
    }

    /// Serves reports until stopped.
    fn serve(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            if self.poll() {
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

    /// Serves reports for a while; true when the producer is beyond repair. Asked for, because the fatal
    /// error is not told to the context in every case.
    fn poll(&self) -> bool {
        let guard = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = guard.as_ref() else { return false };
        producer.poll(POLL);
        producer.client().fatal_error().is_some()
    }

    /// Puts a new producer in the place of a dead one. What the dead one had outstanding is answered as
    /// unknown when it is dropped, here, away from the runtime.
    fn replace(&self) {
        let next = match create(&self.settings, &self.metrics) {
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
) -> Result<BaseProducer<Reports>, KafkaError> {
    let told = Told::new(Client::Producer, metrics);
    BaseProducer::from_config_and_context(settings, Reports { told })
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
    ticket: Box<Ticket>,
) -> BaseRecord<'a, [u8], [u8], Box<Ticket>> {
    BaseRecord {
        topic,
        partition: Some(record.partition),
        payload: Some(&record.value),
        key: record.key.as_deref(),
        timestamp: None,
        headers: native_headers(&record.headers),
        delivery_opaque: ticket,
    }
}

fn native_headers(headers: &Headers) -> Option<OwnedHeaders> {
    if headers.is_empty() {
        return None;
    }
    let native = headers
        .iter()
        .fold(OwnedHeaders::new(), |native, (key, value)| native.insert(Header { key, value }));
    Some(native)
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

/// What librdkafka carries with a record and hands back with its report.
struct Ticket {
    ballot: Arc<Ballot>,
    index: usize,
}

/// The answers of one batch, as they come in.
struct Ballot(Mutex<Count>);

struct Count {
    results: Vec<Option<AppendResult>>,
    open: usize,
    /// `None` once counted.
    caller: Option<oneshot::Sender<Vec<AppendResult>>>,
}

impl Ballot {
    fn open(records: usize) -> (Arc<Self>, oneshot::Receiver<Vec<AppendResult>>) {
        let (caller, settled) = oneshot::channel();
        let results = std::iter::repeat_with(|| None).take(records).collect();
        let count = Count { results, open: records, caller: Some(caller) };
        (Arc::new(Self(Mutex::new(count))), settled)
    }

    /// Takes the answer for one record; the last one wakes the caller.
    fn settle(&self, index: usize, result: AppendResult) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.settle(index, result);
        count.answer_when_complete();
    }

    /// Gives the same answer for this record and every later one.
    fn settle_from(&self, index: usize, error: &AppendError) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for index in index..count.results.len() {
            count.settle(index, Err(error.clone()));
        }
        count.answer_when_complete();
    }

    /// The answers so far; what is open is unknown.
    fn give_up(&self) -> Vec<AppendResult> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.caller = None;
        count.take()
    }
}

impl Count {
    fn settle(&mut self, index: usize, result: AppendResult) {
        if let Some(place @ None) = self.results.get_mut(index) {
            *place = Some(result);
            self.open -= 1;
        }
    }

    fn answer_when_complete(&mut self) {
        if self.open > 0 {
            return;
        }
        if let Some(caller) = self.caller.take() {
            // A caller that went away only loses the answer.
            drop(caller.send(self.take()));
        }
    }

    fn take(&mut self) -> Vec<AppendResult> {
        let unsettled = || AppendError::Unknown("no answer within the append timeout".to_owned());
        let results = std::mem::take(&mut self.results);
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsettled()))).collect()
    }
}

/// Receives what librdkafka has to say.
struct Reports {
    told: Arc<Told>,
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
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, report: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let result = match report {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(verdict_on_delivery(error)),
        };
        ticket.ballot.settle(ticket.index, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> AppendError {
        AppendError::Unknown("?".to_owned())
    }

    #[test]
    fn a_batch_is_answered_once_with_its_last_record() {
        let (ballot, mut settled) = Ballot::open(3);
        ballot.settle(2, Ok(7));
        ballot.settle(0, Err(unknown()));
        assert!(settled.try_recv().is_err());
        ballot.settle(1, Ok(9));
        let results = settled.try_recv().unwrap();
        assert!(matches!(results[..], [Err(AppendError::Unknown(_)), Ok(9), Ok(7)]));
    }

    #[test]
    fn what_is_open_at_the_deadline_is_unknown_and_late_reports_are_harmless() {
        let (ballot, mut settled) = Ballot::open(2);
        ballot.settle(0, Ok(7));
        let results = ballot.give_up();
        assert!(matches!(results[..], [Ok(7), Err(AppendError::Unknown(_))]));
        ballot.settle(1, Ok(8));
        assert!(settled.try_recv().is_err());
    }

    #[test]
    fn records_after_one_that_found_the_queue_full_are_not_tried() {
        let (ballot, mut settled) = Ballot::open(3);
        let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        ballot.settle_from(1, &verdict_on_entry(&full));
        ballot.settle(0, Ok(7));
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
