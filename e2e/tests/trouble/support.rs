//! What the tests of this target share: a service alone on a home, the log and the tables behind the
//! pipeline's back, and reading metrics.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use pulsestream_e2e::client::{Client, PATIENCE};
use pulsestream_e2e::harness::{self, Engines, Home, Running};
use pulsestream_shared::config::Config;
use pulsestream_shared::engine::kafka_config;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::embedded::{EmbeddedConfig, EmbeddedLog};
use pulsestream_shared::log::kafka::{ClientMetrics, KafkaConfig, KafkaLog, damage};
use pulsestream_shared::log::{
    Bounds, EventLog, Identity, LogIdentity, Offset, Partition, ReadLimit, Record, STORE_GROUP,
    Topic,
};
use pulsestream_shared::store::postgres::{PostgresConfig, PostgresStore};
use pulsestream_shared::store::sqlite::{self, SqliteConfig, SqliteStore};
use pulsestream_shared::testing::store::TestedStore;
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

/// A home without running services, a key for it, and its tables.
pub(crate) struct Site {
    pub(crate) home: Home,
    pub(crate) key: String,
    pub(crate) tables: Arc<dyn TestedStore>,
}

impl Site {
    pub(crate) async fn new(engines: Engines) -> Self {
        Self::with(engines, &[]).await
    }

    pub(crate) async fn with(engines: Engines, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let home = Home::new(engines, variables.collect()).await;
        let key = home.make_key("tenant").await;
        let tables = tables(&home.config()).await;
        Self { home, key, tables }
    }

    /// A gateway and nothing else runs while these events are posted; returns their ids.
    pub(crate) async fn accept(&self, devices: &[Uuid], each: usize) -> Vec<EventId> {
        let gateway = harness::start_gateway(&self.home).await;
        let ids = self.post(&gateway, devices, each).await;
        gateway.stop().await;
        ids
    }

    /// Posts to a gateway that runs; returns the ids.
    pub(crate) async fn post(
        &self,
        gateway: &Running,
        devices: &[Uuid],
        each: usize,
    ) -> Vec<EventId> {
        let client = Client::new(&gateway.url, &self.key);
        let mut ids = Vec::new();
        for round in 0..each {
            for device in devices {
                ids.push(EventId(client.accept(*device, round as f64).await));
            }
        }
        ids
    }

    /// A consumer and nothing else.
    pub(crate) async fn consumer(&self) -> Running {
        harness::start(&self.home, pulsestream_consumer::ROLE, pulsestream_consumer::build).await
    }

    /// Runs a consumer until so many events are stored.
    pub(crate) async fn store_all(&self, count: usize) {
        let consumer = self.consumer().await;
        self.stored(count).await;
        consumer.stop().await;
    }

    /// Waits until so many events are stored.
    pub(crate) async fn stored(&self, count: usize) {
        wait_for(&format!("{count} stored events"), PATIENCE, async || {
            self.tables.count_events().await.expect("a count") >= count as u64
        })
        .await;
    }

    /// Waits until the store stands at the end of the log, and every event is stored once.
    pub(crate) async fn stored_exactly(&self, expected: &[EventId], log: &Log) {
        self.settled(log).await;
        assert_eq!(self.stored_ids().await, sorted(expected));
    }

    /// Waits until the store stands at the end of the log.
    pub(crate) async fn settled(&self, log: &Log) {
        let next = log.ends().await;
        wait_for("the store at the end of the log", PATIENCE, async || {
            let epoch = log.identity().await.epoch;
            let progress = self.tables.progress(STORE_GROUP).await.expect("progress");
            let stands = |(partition, next): (usize, &Offset)| {
                let mut places = progress.iter().filter(|place| place.epoch == epoch);
                let here = places.find(|p| usize::try_from(p.partition) == Ok(partition));
                here.is_some_and(|place| place.next == *next)
            };
            next.iter().enumerate().all(stands)
        })
        .await;
    }

    /// The ids of all stored events; one that is stored twice is here twice.
    pub(crate) async fn stored_ids(&self) -> Vec<EventId> {
        let events = self.tables.stored_events().await.expect("events");
        sorted(&events.iter().map(|event| event.id).collect::<Vec<_>>())
    }

    /// The tenant's number.
    pub(crate) async fn client_number(&self) -> ClientId {
        self.tables.list().await.expect("keys")[0].client
    }

    pub(crate) async fn remove(self) {
        drop(self.tables);
        self.home.remove().await;
    }
}

pub(crate) fn sorted(ids: &[EventId]) -> Vec<EventId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

pub(crate) fn devices(count: usize) -> Vec<Uuid> {
    (0..count).map(|_| Uuid::new_v4()).collect()
}

async fn tables(config: &Config) -> Arc<dyn TestedStore> {
    let url = config.store.database_url.expose();
    if url.is_empty() {
        let path = config.embedded.data_dir.join("store.db");
        sqlite::migrate(&path).await.expect("migrated");
        return Arc::new(SqliteStore::open(SqliteConfig::new(path)).await.expect("tables"));
    }
    postgres_tables(url).await
}

/// The tables of a PostgreSQL.
pub(crate) async fn postgres_tables(url: &str) -> Arc<dyn TestedStore> {
    let config = PostgresConfig { max_connections: 2, ..PostgresConfig::new(url) };
    Arc::new(PostgresStore::open(config).await.expect("tables"))
}

/// The log behind the pipeline's back. Embedded: no pipeline may run on it, unless it is attached.
pub(crate) enum Log {
    Embedded(EmbeddedLog),
    Kafka(Box<KafkaLog>, KafkaConfig),
}

impl Log {
    /// Opens the home's log as its only user.
    pub(crate) async fn open(home: &Home) -> Self {
        let config = home.config();
        if home.engines == Engines::Servers {
            let config = kafka_config(&config);
            let log =
                KafkaLog::open(config.clone(), ClientMetrics::unseen()).await.expect("the log");
            return Self::Kafka(Box::new(log), config);
        }
        let config = EmbeddedConfig {
            dir: config.embedded.data_dir,
            partitions: config.log.partitions,
            retention: config.log.retention,
            max_bytes: config.embedded.log_max_bytes,
            append_timeout: config.log.append_timeout,
        };
        Self::Embedded(EmbeddedLog::open(config).await.expect("the log"))
    }

    /// Opens the home's log beside a pipeline that may run on it.
    pub(crate) async fn attach(home: &Home) -> Self {
        match home.engines {
            Engines::Servers => Self::open(home).await,
            Engines::Embedded => {
                let dir = home.config().embedded.data_dir;
                Self::Embedded(EmbeddedLog::attach(&dir).await.expect("the log"))
            }
        }
    }

    pub(crate) fn port(&self) -> &dyn EventLog {
        match self {
            Self::Embedded(log) => log,
            Self::Kafka(log, _) => log.as_ref(),
        }
    }

    pub(crate) async fn identity(&self) -> Identity {
        let identity = match self {
            Self::Embedded(log) => log.identity().await,
            Self::Kafka(log, _) => log.identity().await,
        };
        identity.expect("an identity")
    }

    pub(crate) async fn bounds(&self) -> Vec<Bounds> {
        self.port().bounds(Topic::Raw).await.expect("bounds")
    }

    pub(crate) async fn ends(&self) -> Vec<Offset> {
        self.bounds().await.iter().map(|bounds| bounds.next).collect()
    }

    /// Every record of a topic.
    pub(crate) async fn records(&self, topic: Topic) -> Vec<Record> {
        let mut all = Vec::new();
        let bounds = self.port().bounds(topic).await.expect("bounds");
        for (partition, bounds) in (0..).zip(bounds) {
            let mut from = bounds.first;
            while from < bounds.next {
                let limit = ReadLimit { records: 1_000, bytes: 1 << 20 };
                let read = self.port().read(topic, partition, from, limit).await.expect("records");
                from = read.last().expect("records below the end").offset + 1;
                all.extend(read);
            }
        }
        all
    }

    /// Removes the records of a partition below an offset, as retention would.
    pub(crate) async fn remove_below(&self, partition: Partition, below: Offset) {
        match self {
            Self::Embedded(log) => {
                log.truncate(Topic::Raw, partition, below).await.expect("removed");
            }
            Self::Kafka(_, config) => {
                damage::delete_records(config, &[(partition, below)]).await.expect("removed");
            }
        }
        let bounds = self.bounds().await[usize::try_from(partition).expect("a partition")];
        assert_eq!(bounds.first, below);
    }

    pub(crate) async fn close(self) {
        match self {
            Self::Embedded(log) => log.close().await,
            Self::Kafka(log, _) => assert!(log.close(Duration::from_secs(5)).await, "no clean end"),
        }
    }
}

/// The sum of a counter over the series with that label, `pulsestream_` left out.
pub(crate) fn counter(registry: &Registry, name: &str, label: Option<(&str, &str)>) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|f| f.name() == format!("pulsestream_{name}"));
    let metrics = family.unwrap_or_else(|| panic!("no metric {name}")).get_metric();
    let wanted = |metric: &&prometheus::proto::Metric| {
        label.is_none_or(|(name, value)| {
            metric.get_label().iter().any(|l| l.name() == name && l.value() == value)
        })
    };
    let sum: f64 = metrics.iter().filter(wanted).map(|m| m.get_counter().get_value()).sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    let sum = sum as u64;
    sum
}

/// Partitions a consumer stands in.
pub(crate) fn assigned(registry: &Registry) -> i64 {
    gauge(registry, "consumer_assigned_partitions", None)
}

/// A gauge, `pulsestream_` left out, of one value of its label if it has one; 0 when it is not there yet.
pub(crate) fn gauge(registry: &Registry, name: &str, label: Option<&str>) -> i64 {
    let families = registry.gather();
    let family = families.iter().find(|f| f.name() == format!("pulsestream_{name}"));
    let metrics = family.map_or(&[][..], |family| family.get_metric());
    let metric = metrics.iter().find(|metric| {
        label.is_none_or(|value| metric.get_label().iter().any(|label| label.value() == value))
    });
    #[expect(clippy::cast_possible_truncation, reason = "a small count")]
    let count = metric.map_or(0, |metric| metric.get_gauge().get_value() as i64);
    count
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `pulsestream ARGUMENTS` with these settings and no others, to its end.
pub(crate) async fn run(arguments: &[&str], variables: &BTreeMap<String, String>) -> Ended {
    let mut command = tokio::process::Command::new(pulsestream_e2e::process::binary());
    command.args(arguments).env_clear().envs(variables).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Settings of a process, by their variables.
pub(crate) fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
