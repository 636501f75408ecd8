//! What every client of the brokers shares: its settings, its log lines, its errors.

use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};

use super::KafkaConfig;
use crate::log::LogError;

/// How long one question to the brokers may take. Below a gateway's request deadline.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings of every client. An absent broker is looked for again within a second, not ten.
pub(super) fn settings(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "pulsestream")
        .set("socket.nagle.disable", "true")
        .set("socket.timeout.ms", "6000")
        .set("socket.connection.setup.timeout.ms", "3000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("retry.backoff.ms", "50")
        .set("retry.backoff.max.ms", "500")
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("metadata.max.age.ms", "15000")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Warning);
    client
}

/// Settings of a client that fetches. Fetch sizes are bounded, and a full local queue is looked at again
/// after 10 ms (the default of a second shows as a stall).
pub(super) fn fetching(config: &KafkaConfig) -> ClientConfig {
    let mut client = settings(config);
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_uncommitted")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.error.backoff.ms", "50")
        .set("check.crcs", "true");
    client
}

/// The context of a client that has nothing to be called back for.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext<NoCustomPartitioner> for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &rdkafka::producer::DeliveryResult<'_>, (): Self::DeliveryOpaque) {}
}

/// Passes a line of librdkafka on. Its "errors" are every refused connection, once a second while a
/// broker is away, so they are for who looks closely; the outage itself is told where it is noticed, once.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::debug!(target: "librdkafka", facility, "{message}");
        }
        _ => tracing::trace!(target: "librdkafka", facility, "{message}"),
    }
}

/// Tells of a client-wide error. That no broker can be reached is said by each client again and again,
/// and all at once when it is next polled, so it is for who looks closely as well.
pub(super) fn log_error(error: &KafkaError, reason: &str) {
    if code(error) == Some(RDKafkaErrorCode::Fatal) {
        tracing::warn!(reason, "the client is beyond repair");
    } else {
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }
}

/// The broker's or librdkafka's code for the error, where it carries one.
pub(super) fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    error.rdkafka_error_code()
}

/// An error that passes.
pub(super) fn unavailable(error: impl std::fmt::Display) -> LogError {
    LogError::Unavailable(error.to_string())
}
