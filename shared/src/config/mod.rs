//! Configuration: every setting a person can change, as one checked value.
//!
//! `config/default.toml` is the reference: it holds every setting with unit, default and reason, and it
//! is compiled in. This module gives it types; `layers` puts file, environment and flags on top. What
//! is wrong is reported all at once, with the name it was set by. Nothing else reads the environment.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use url::Url;
use validator::Validate;

use crate::log::kafka::RebalanceProtocol;
use crate::traces::Collector;

mod layers;
mod secret;
mod span;

pub use layers::{Fault, Faults, Flag, Loaded, Source, load};
pub use secret::Secret;
pub use span::parse as parse_duration;

/// Every setting.
#[derive(Debug, Clone, Deserialize, Validate)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/default.toml documents each section and setting once")]
pub struct Config {
    #[validate(nested)]
    pub server: Server,
    #[validate(nested)]
    pub embedded: Embedded,
    #[validate(nested)]
    pub log: Log,
    #[validate(nested)]
    pub store: Store,
    #[validate(nested)]
    pub cache: Cache,
    #[validate(nested)]
    pub keys: Keys,
    #[validate(nested)]
    pub ingest: Ingest,
    #[validate(nested)]
    pub limits: Limits,
    #[validate(nested)]
    pub read: Read,
    #[validate(nested)]
    pub consumer: Consumer,
    #[validate(nested)]
    pub live: Live,
    #[validate(nested)]
    pub telemetry: Telemetry,
}

macro_rules! section {
    ($name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty),* $(,)? }) => {
        #[derive(Debug, Clone, Deserialize, Validate)]
        #[serde(deny_unknown_fields)]
        #[expect(missing_docs, reason = "config/default.toml documents each setting once")]
        pub struct $name {
            $($(#[$attribute])* pub $field: $type,)*
        }
    };
}

section!(Server {
    #[validate(length(min = 1))]
    host: String,
    port: u16,
    consumer_port: u16,
    broadcaster_port: u16,
    #[serde(with = "span")]
    drain_grace: Duration,
    #[serde(with = "span")]
    drain_timeout: Duration,
    #[serde(with = "span")]
    header_timeout: Duration,
    #[serde(with = "span")]
    keep_alive_timeout: Duration,
    #[serde(with = "span")]
    write_stall_timeout: Duration,
    #[serde(with = "span")]
    max_connection_age: Duration,
    #[validate(range(min = 1, max = 1_000_000))]
    max_connections: usize,
    tls_cert: PathBuf,
    tls_key: PathBuf,
    cors_origins: Vec<String>,
    server_timing: bool,
    dev: bool,
});

section!(Embedded {
    data_dir: PathBuf,
    #[validate(range(min = 16_777_216, message = "is at least 16 MiB"))]
    log_max_bytes: u64,
});

section!(Log {
    kafka_brokers: String,
    #[validate(length(max = 100, message = "is at most 100 characters"))]
    namespace: String,
    #[validate(range(min = 1, max = 1_000, message = "is 1 to 1000"))]
    partitions: u32,
    #[validate(range(min = 1, max = 9, message = "is 1 to 9"))]
    replication: i32,
    #[serde(with = "span")]
    retention: Duration,
    #[serde(with = "span")]
    append_timeout: Duration,
    #[serde(with = "span")]
    message_timeout: Duration,
    #[serde(with = "span")]
    linger: Duration,
    rebalance_protocol: RebalanceProtocol,
    #[validate(length(max = 200, message = "is at most 200 characters"))]
    group_instance_id: String,
    #[serde(with = "span")]
    session_timeout: Duration,
});

section!(Store {
    database_url: Secret,
    #[validate(range(min = 2, max = 1_000, message = "is 2 to 1000"))]
    max_connections: u32,
    #[validate(range(min = 3, max = 3_650, message = "is 3 to 3650"))]
    retention_days: u32,
});

section!(Cache {
    redis_url: Secret,
    #[serde(with = "span")]
    timeout: Duration,
    #[validate(range(min = 1, max = 64, message = "is 1 to 64"))]
    connections: usize,
});

section!(Keys {
    pepper: Secret,
    #[serde(with = "span")]
    process_ttl: Duration,
    #[serde(with = "span")]
    negative_ttl: Duration,
    #[serde(with = "span")]
    cache_ttl: Duration,
    #[serde(with = "span")]
    lookup_timeout: Duration,
});

section!(Ingest {
    #[serde(with = "span")]
    clock_drift: Duration,
    #[serde(with = "span")]
    max_event_age: Duration,
    #[validate(range(min = 256, max = 1_048_576, message = "is 256 bytes to 1 MiB"))]
    max_body_bytes: usize,
    #[serde(with = "span")]
    request_timeout: Duration,
    #[serde(with = "span")]
    lease: Duration,
    #[serde(with = "span")]
    body_stall_timeout: Duration,
    #[validate(range(min = 1, max = 1_000_000, message = "is 1 to 1000000"))]
    min_body_bytes_per_second: u32,
    #[validate(range(min = 1, max = 1_000_000))]
    max_in_flight: usize,
    #[validate(range(min = 1_048_576, message = "is at least 1 MiB"))]
    max_in_flight_bytes: u32,
    #[validate(range(min = 1, max = 10_000_000))]
    local_locks: usize,
    #[validate(range(min = 1, max = 10_000, message = "is 1 to 10000"))]
    max_batch_events: usize,
    #[validate(range(min = 1_024, max = 67_108_864, message = "is 1 KiB to 64 MiB"))]
    max_batch_bytes: usize,
    #[validate(range(min = 1, max = 10_000, message = "is 1 to 10000"))]
    max_batches: usize,
});

section!(Limits {
    key_rate: u32,
    key_burst: u32,
    device_rate: u32,
    device_burst: u32,
    #[serde(with = "span")]
    report_interval: Duration,
});

section!(Read {
    #[serde(with = "span")]
    timeout: Duration,
    #[validate(range(min = 1, max = 100, message = "is 1 to 100"))]
    concurrent: u32,
    #[serde(with = "span")]
    max_wait: Duration,
    #[serde(with = "span")]
    max_span: Duration,
});

section!(Consumer {
    #[validate(range(min = 1, max = 16, message = "is 1 to 16"))]
    writers: usize,
    #[validate(range(min = 1, max = 50_000, message = "is 1 to 50000"))]
    batch_records: usize,
    #[validate(range(min = 1_024, max = 67_108_864, message = "is 1 KiB to 64 MiB"))]
    batch_bytes: usize,
    #[serde(with = "span")]
    batch_age: Duration,
});

section!(Live {
    gateway_url: String,
    #[serde(with = "span")]
    repeat_window: Duration,
    #[validate(range(min = 4_096, message = "is at least 4 KiB"))]
    queue_bytes: usize,
    #[serde(with = "span")]
    ping_interval: Duration,
    #[serde(with = "span")]
    pong_timeout: Duration,
    #[serde(with = "span")]
    bus_silence: Duration,
    #[validate(range(min = 65_536, message = "is at least 64 KiB"))]
    ring_bytes: usize,
    #[serde(with = "span")]
    ring_age: Duration,
    #[serde(with = "span")]
    max_lag: Duration,
    #[validate(range(min = 1, max = 100, message = "is 1 to 100"))]
    snapshots: usize,
    #[validate(range(min = 1, max = 1_000_000, message = "is 1 to 1000000"))]
    snapshot_values: usize,
    #[serde(with = "span")]
    snapshot_timeout: Duration,
    #[serde(with = "span")]
    stream_age: Duration,
    #[validate(range(min = 1, message = "is at least 1"))]
    streams_per_client: usize,
    streams_per_address: usize,
    opens_per_second: u32,
    #[serde(with = "span")]
    token_ttl: Duration,
    #[serde(with = "span")]
    token_max_ttl: Duration,
    #[serde(with = "span")]
    auth_timeout: Duration,
});

section!(Telemetry {
    log_format: LogFormat,
    log_level: String,
    otlp_endpoint: String,
    trace_one_in: u32,
    trace_asked_per_second: u32,
    resource_attributes: Vec<String>,
});

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Server {
    /// True when nothing from outside this machine can reach the listener.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// True when it speaks TLS, and nothing else.
    pub fn is_encrypted(&self) -> bool {
        !self.tls_cert.as_os_str().is_empty()
    }

    /// How its URLs begin.
    pub fn scheme(&self) -> &'static str {
        if self.is_encrypted() { "https" } else { "http" }
    }
}

impl Live {
    fn requirements(&self) -> [(bool, &'static str, &'static str); 5] {
        const SECOND: Duration = Duration::from_secs(1);
        let (day, minute) = (SECOND * 86_400, SECOND * 60);
        [
            (
                self.gateway_url.is_empty() || is_origin(&self.gateway_url),
                "live.gateway_url",
                "must be http://HOST:PORT or https://HOST:PORT, with nothing after it",
            ),
            (
                (SECOND..=day).contains(&self.token_max_ttl),
                "live.token_max_ttl",
                "must be between 1s and 1d: a token cannot be taken back but with its key",
            ),
            (
                (SECOND..=self.token_max_ttl).contains(&self.token_ttl),
                "live.token_ttl",
                "must be between 1s and live.token_max_ttl",
            ),
            (
                (Duration::from_millis(10)..=minute).contains(&self.auth_timeout),
                "live.auth_timeout",
                "must be between 10ms and 60s",
            ),
            (
                (Duration::from_millis(10)..=minute).contains(&self.snapshot_timeout),
                "live.snapshot_timeout",
                "must be between 10ms and 60s: a stream does not open before",
            ),
        ]
    }
}

impl Config {
    /// What no single setting can tell: settings that contradict each other.
    fn contradictions(&self) -> Vec<Fault> {
        const SECOND: Duration = Duration::from_secs(1);
        const DAY: Duration = Duration::from_secs(86_400);
        let mut faults = Vec::new();
        let mut require = |holds: bool, setting: &str, message: &str| {
            if !holds {
                faults.push(Fault { setting: setting.to_owned(), message: message.to_owned() });
            }
        };
        let (log, ingest) = (&self.log, &self.ingest);
        require(
            log.message_timeout < log.append_timeout,
            "log.message_timeout",
            "must be below log.append_timeout, or events arrive after their sender was told 503",
        );
        require(
            log.append_timeout < ingest.request_timeout,
            "log.append_timeout",
            "must be below ingest.request_timeout",
        );
        require(
            ingest.request_timeout < ingest.lease,
            "ingest.request_timeout",
            "must be below ingest.lease, or a second attempt starts while the first still runs",
        );
        require(
            self.limits.report_interval >= Duration::from_millis(10),
            "limits.report_interval",
            "must be at least 10ms: each report is a script on the Redis for each limited key",
        );
        require(log.retention >= 7 * DAY, "log.retention", "must be at least 7d");
        require(
            (6 * SECOND..=300 * SECOND).contains(&log.session_timeout),
            "log.session_timeout",
            "must be between 6s, the least a broker allows by default, and 5m",
        );
        require(
            ingest.max_event_age <= DAY * self.store.retention_days.saturating_sub(2),
            "ingest.max_event_age",
            "must be at most store.retention_days - 2 days: older events have no place in the table",
        );
        require(
            (Duration::from_millis(10)..=Duration::from_secs(60)).contains(&self.read.timeout),
            "read.timeout",
            "must be between 10ms and 60s",
        );
        require(
            (DAY..=3_660 * DAY).contains(&self.read.max_span),
            "read.max_span",
            "must be between 1d and 3660d",
        );
        for (holds, setting, message) in self.live.requirements() {
            require(holds, setting, message);
        }
        let server = &self.server;
        for (time, setting) in [
            (server.keep_alive_timeout, "server.keep_alive_timeout"),
            (server.write_stall_timeout, "server.write_stall_timeout"),
            (server.max_connection_age, "server.max_connection_age"),
        ] {
            require(time >= SECOND, setting, "must be at least 1s");
        }
        require(
            server.is_encrypted() || server.tls_key.as_os_str().is_empty(),
            "server.tls_cert",
            "must be set as well, server.tls_key is",
        );
        require(
            !server.is_encrypted() || !server.tls_key.as_os_str().is_empty(),
            "server.tls_key",
            "must be set as well, server.tls_cert is",
        );
        require(
            !self.server.dev || self.server.is_loopback(),
            "server.dev",
            "needs a loopback server.host: it lets anybody read the live stream",
        );
        let telemetry = &self.telemetry;
        require(
            telemetry.otlp_endpoint.is_empty() || Collector::at(&telemetry.otlp_endpoint).is_some(),
            "telemetry.otlp_endpoint",
            "must be http://HOST:PORT, without TLS: put a collector beside the service",
        );
        require(
            telemetry.resource_attributes.iter().all(|attribute| attribute.contains('=')),
            "telemetry.resource_attributes",
            "must be name=value each",
        );
        require(
            self.keys.process_ttl <= Duration::from_secs(30),
            "keys.process_ttl",
            "must be at most 30s, the longest a revocation may take",
        );
        faults
    }
}

/// What a browser calls an origin: scheme, host and, unless it is the scheme's own, port.
fn is_origin(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
    })
}

#[cfg(test)]
mod tests;
