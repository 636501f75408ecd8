//! Which engine runs behind each port; the only place that knows. Chosen by URL.
//!
//! | | given | not given |
//! |---|---|---|
//! | log | `log.kafka_brokers`: Kafka | the data folder |
//! | store | `store.database_url` `postgres://`: PostgreSQL | SQLite in the data folder, or at `sqlite://PATH` |
//! | cache, bus | `cache.redis_url`: Redis | within the process |

mod attached;
#[cfg(test)]
mod crashes;
mod recovery;
mod upkeep;

pub use attached::AttachedLog;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;

use crate::admin::{Dependency, Readiness};
use crate::auth::KeyNotices;
use crate::bus::Bus;
use crate::bus::local::LocalBus;
use crate::bus::redis::{RedisBus, RedisBusConfig};
use crate::cache::Cache;
use crate::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use crate::cache::redis::{CacheOpenError, RedisCache, RedisConfig};
use crate::config::Config;
use crate::log::embedded::{EmbeddedConfig, EmbeddedLog};
use crate::log::kafka::{self, ClientMetrics, KafkaConfig, KafkaLog};
use crate::log::{EventLog, LogError, LogIdentity, STORE_GROUP, Topic};
use crate::metrics::Metrics;
use crate::retry::Backoff;
use crate::store::postgres::{self, PostgresConfig, PostgresStore};
use crate::store::sqlite::{self, SqliteConfig, SqliteStore};
use crate::store::{DeadLetterStore, EventQuery, EventStore, KeyStore, StoreError};

/// What stands behind the ports of one process.
#[derive(Clone)]
pub struct Engine {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The log's name for itself.
    pub identity: Arc<dyn LogIdentity>,
    /// Partitions of the log; fixed.
    pub partitions: u32,
    /// Events and offsets.
    pub store: Arc<dyn EventStore>,
    /// What was stored, for reading.
    pub query: Arc<dyn EventQuery>,
    /// Clients and keys.
    pub keys: Arc<dyn KeyStore>,
    /// Dead letters.
    pub letters: Arc<dyn DeadLetterStore>,
    /// Idempotency locks and looked-up keys.
    pub cache: Arc<dyn Cache>,
    /// Live batches and notices.
    pub bus: Arc<dyn Bus>,
    kind: LogKind,
    /// Cache and bus are those of other processes too.
    shared: bool,
}

/// The log as itself, for what no port has a word for: retention and a clean end.
#[derive(Clone)]
enum LogKind {
    Kafka(Arc<KafkaLog>),
    Embedded(EmbeddedLog),
}

/// What is needed cannot be used, however long one waits.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// The ports to one database.
#[derive(Clone)]
pub struct Stores {
    /// Events and offsets.
    pub events: Arc<dyn EventStore>,
    /// What was stored, for reading.
    pub query: Arc<dyn EventQuery>,
    /// Clients and keys.
    pub keys: Arc<dyn KeyStore>,
    /// Dead letters.
    pub letters: Arc<dyn DeadLetterStore>,
}

impl Stores {
    fn of<S>(store: Arc<S>) -> Self
    where
        S: EventStore + EventQuery + KeyStore + DeadLetterStore + 'static,
    {
        let (events, query, keys) = (store.clone(), store.clone(), store.clone());
        Self { events, query, keys, letters: store }
    }
}

/// Why one attempt to open an engine ended.
enum Attempt {
    /// Passing: wait and try again.
    Later(String),
    /// For good.
    Never(String),
}

impl From<LogError> for Attempt {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable(_) => Self::Later(error.to_string()),
            LogError::Unusable(_) => Self::Never(error.to_string()),
        }
    }
}

impl From<StoreError> for Attempt {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Transient(_) => Self::Later(error.to_string()),
            StoreError::Deployment(_) => Self::Never(error.to_string()),
        }
    }
}

impl From<CacheOpenError> for OpenError {
    fn from(error: CacheOpenError) -> Self {
        Self(error.to_string())
    }
}

impl Engine {
    /// Opens every engine, waiting for servers that are absent; each wait is logged and named by
    /// `/readyz`. Redis is not waited for; `/readyz` says from the first whether it answers. Embedded
    /// engines are created and migrated here; servers are migrated by [`migrate`].
    ///
    /// # Errors
    /// [`OpenError`] when waiting cannot help.
    pub async fn open(
        config: &Config,
        readiness: &Readiness,
        registry: &Registry,
    ) -> Result<Self, OpenError> {
        if is_kafka(config) && !is_redis(config) {
            return Err(OpenError(
                "KAFKA_BROKERS is set but REDIS_URL is not: gateways share idempotency keys through \
                 Redis. Set REDIS_URL, or unset KAFKA_BROKERS to run embedded"
                    .to_owned(),
            ));
        }
        let (kind, partitions) = open_log(config, readiness, registry).await?;
        let stores = waiting(Dependency::Store, readiness.clone(), || open_stores(config)).await?;
        if let LogKind::Embedded(log) = &kind {
            recovery::tell(log, stores.events.as_ref()).await;
        }
        let cache: Arc<dyn Cache> = match &kind {
            LogKind::Embedded(log) if !is_redis(config) => {
                Arc::new(EmbeddedCache::new(log, EmbeddedCacheBounds::default()))
            }
            _ => {
                let redis = open_redis_cache(config).await?;
                absolve_new(&redis, &kind, stores.events.as_ref()).await;
                redis
            }
        };
        let bus: Arc<dyn Bus> = if is_redis(config) {
            Arc::new(
                RedisBus::open(redis_bus(config)).map_err(|error| OpenError(error.to_string()))?,
            )
        } else {
            Arc::new(LocalBus::new())
        };
        let (log, identity): (Arc<dyn EventLog>, Arc<dyn LogIdentity>) = match &kind {
            LogKind::Kafka(log) => (log.clone(), log.clone()),
            LogKind::Embedded(log) => (Arc::new(log.clone()), Arc::new(log.clone())),
        };
        let engine = Self {
            log,
            identity,
            partitions,
            store: stores.events,
            query: stores.query,
            keys: stores.keys,
            letters: stores.letters,
            cache,
            bus,
            kind,
            shared: is_redis(config),
        };
        // A cache opens without its server: whether that answers is known only now.
        engine.probe(readiness).await;
        Ok(engine)
    }

    /// Where processes share looked-up keys; `None` when the cache is in this process: it would know no
    /// more than the keyring does, and no command could revoke a key in it.
    pub fn key_cache(&self) -> Option<Arc<dyn Cache>> {
        self.shared.then(|| self.cache.clone())
    }

    /// Where this process hears of changed keys.
    pub async fn key_notices(&self) -> KeyNotices {
        if self.shared {
            KeyNotices::of_bus(self.bus.as_ref()).await
        } else {
            KeyNotices::of_store(self.keys.clone())
        }
    }

    /// Ends the log cleanly: what was handed to it is written, its groups are left. Called when every
    /// task has ended.
    pub(crate) async fn close(&self) {
        match &self.kind {
            LogKind::Embedded(log) => log.close().await,
            LogKind::Kafka(log) => {
                if !log.close(CLOSE_WITHIN).await {
                    tracing::warn!("the Kafka client did not end in time");
                }
            }
        }
    }
}

const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Creates topics and tables on the servers that are configured; harmless when they are there.
///
/// # Errors
/// [`OpenError`] when a server refuses. An absent server is waited for.
pub async fn migrate(config: &Config, readiness: &Readiness) -> Result<(), OpenError> {
    if is_kafka(config) {
        let kafka = kafka_config(config);
        waiting(Dependency::Log, readiness.clone(), || async { Ok(kafka::migrate(&kafka).await?) })
            .await?;
    }
    waiting(Dependency::Store, readiness.clone(), || async {
        match store_url(config) {
            StoreUrl::Postgres(url) => postgres::migrate(&url).await?,
            StoreUrl::Sqlite(path) => {
                create_folder_of(&path).map_err(Attempt::Never)?;
                sqlite::migrate(&path).await?;
            }
        }
        Ok(())
    })
    .await
}

/// Opens the store alone, for commands that work beside a running pipeline.
///
/// # Errors
/// [`OpenError`]; does not wait.
pub async fn open_store(config: &Config) -> Result<Stores, OpenError> {
    match open_stores(config).await {
        Ok(stores) => Ok(stores),
        Err(Attempt::Later(reason) | Attempt::Never(reason)) => Err(OpenError(reason)),
    }
}

/// The cache and bus alone, for commands that tell running gateways of a change; `None` when the
/// pipeline is embedded and looks at the store by itself.
///
/// # Errors
/// [`OpenError`]; does not wait.
pub async fn open_redis(
    config: &Config,
) -> Result<Option<(Arc<dyn Cache>, Arc<dyn Bus>)>, OpenError> {
    if !is_redis(config) {
        return Ok(None);
    }
    let cache = open_redis_cache(config).await?;
    let bus = RedisBus::open(redis_bus(config)).map_err(|error| OpenError(error.to_string()))?;
    Ok(Some((cache, Arc::new(bus))))
}

/// True when any server is configured: the pipeline is not all in one folder.
pub fn is_distributed(config: &Config) -> bool {
    is_kafka(config) || is_redis(config) || matches!(store_url(config), StoreUrl::Postgres(_))
}

/// Names of the servers a service of its own needs and is not given.
pub fn missing_servers(config: &Config) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !is_kafka(config) {
        missing.push("KAFKA_BROKERS");
    }
    if !matches!(store_url(config), StoreUrl::Postgres(_)) {
        missing.push("DATABASE_URL (postgres://…)");
    }
    if !is_redis(config) {
        missing.push("REDIS_URL");
    }
    missing
}

fn is_kafka(config: &Config) -> bool {
    !config.log.kafka_brokers.trim().is_empty()
}

fn is_redis(config: &Config) -> bool {
    !config.cache.redis_url.is_empty()
}

enum StoreUrl {
    Postgres(String),
    Sqlite(PathBuf),
}

fn store_url(config: &Config) -> StoreUrl {
    let url = config.store.database_url.expose();
    match url.strip_prefix("sqlite:") {
        Some(path) => StoreUrl::Sqlite(path.trim_start_matches("//").into()),
        None if url.is_empty() => StoreUrl::Sqlite(config.embedded.data_dir.join("store.db")),
        None => StoreUrl::Postgres(url.to_owned()),
    }
}

async fn open_log(
    config: &Config,
    readiness: &Readiness,
    registry: &Registry,
) -> Result<(LogKind, u32), OpenError> {
    // Registered once, however often the brokers are tried.
    let metrics = is_kafka(config).then(|| ClientMetrics::new(&Metrics(registry)));
    waiting(Dependency::Log, readiness.clone(), || async {
        if let Some(metrics) = &metrics {
            let log = KafkaLog::open(kafka_config(config), metrics.clone()).await?;
            let partitions = log.identity().await?.partitions;
            return Ok((LogKind::Kafka(Arc::new(log)), partitions));
        }
        let log = EmbeddedLog::open(embedded_config(config)).await?;
        let partitions = log.identity().await?.partitions;
        Ok((LogKind::Embedded(log), partitions))
    })
    .await
}

async fn open_stores(config: &Config) -> Result<Stores, Attempt> {
    match store_url(config) {
        StoreUrl::Postgres(url) => {
            let store = Arc::new(
                PostgresStore::open(PostgresConfig {
                    max_connections: config.store.max_connections,
                    retention_days: config.store.retention_days,
                    query_connections: query_connections(config),
                    query_timeout: config.read.timeout,
                    ..PostgresConfig::new(url)
                })
                .await?,
            );
            Ok(Stores::of(store))
        }
        StoreUrl::Sqlite(path) => {
            create_folder_of(&path).map_err(Attempt::Never)?;
            sqlite::migrate(&path).await?;
            let config = SqliteConfig {
                retention_days: config.store.retention_days,
                query_connections: query_connections(config),
                query_timeout: config.read.timeout,
                ..SqliteConfig::new(path)
            };
            let store = Arc::new(SqliteStore::open(config).await?);
            Ok(Stores::of(store))
        }
    }
}

/// One for each query that may run at once, of the read API and of live streams that begin.
fn query_connections(config: &Config) -> u32 {
    config.read.concurrent + u32::try_from(config.live.snapshots).unwrap_or(0)
}

/// The data folder may be first wanted by a command that makes a key before the pipeline ever ran.
fn create_folder_of(path: &Path) -> Result<(), String> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::fs::create_dir_all(folder)
            .map_err(|error| format!("data folder {}: {error}", folder.display())),
        _ => Ok(()),
    }
}

/// A Redis without a sentinel has forgotten nothing when nothing was ever accepted: the very first start. It is
/// marked first and absolved afterwards, so that whatever is accepted in between is counted for.
async fn absolve_new(redis: &RedisCache, log: &LogKind, store: &dyn EventStore) {
    let Ok(Some(at_ms)) = redis.forgot_at_ms().await else { return };
    let bounds = match log {
        LogKind::Kafka(log) => log.bounds(Topic::Raw).await,
        LogKind::Embedded(log) => log.bounds(Topic::Raw).await,
    };
    let no_record = bounds.is_ok_and(|bounds| bounds.iter().all(|bounds| bounds.next == 0));
    let places = store.progress(STORE_GROUP).await;
    let no_row = places.is_ok_and(|places| places.iter().all(|place| place.next == 0));
    if no_record
        && no_row
        && let Err(error) = redis.absolve(at_ms).await
    {
        tracing::warn!(%error, "a new Redis counts as one that lost its keys");
    }
}

async fn open_redis_cache(config: &Config) -> Result<Arc<RedisCache>, CacheOpenError> {
    let cache = RedisCache::open(RedisConfig {
        url: config.cache.redis_url.expose().to_owned(),
        namespace: config.log.namespace.clone(),
        connections: config.cache.connections,
        timeout: config.cache.timeout,
    })
    .await?;
    Ok(Arc::new(cache))
}

/// The part of the settings that the log on Kafka takes.
pub fn kafka_config(config: &Config) -> KafkaConfig {
    KafkaConfig {
        brokers: config.log.kafka_brokers.clone(),
        namespace: config.log.namespace.clone(),
        append_timeout: config.log.append_timeout,
        message_timeout: config.log.message_timeout,
        linger: config.log.linger,
        partitions: config.log.partitions,
        replication: config.log.replication,
        retention: config.log.retention,
        rebalance_protocol: config.log.rebalance_protocol,
        group_instance_id: config.log.group_instance_id.clone(),
        session_timeout: config.log.session_timeout,
    }
}

fn embedded_config(config: &Config) -> EmbeddedConfig {
    EmbeddedConfig {
        dir: config.embedded.data_dir.clone(),
        partitions: config.log.partitions,
        retention: config.log.retention,
        max_bytes: config.embedded.log_max_bytes,
        append_timeout: config.log.append_timeout,
    }
}

fn redis_bus(config: &Config) -> RedisBusConfig {
    RedisBusConfig {
        url: config.cache.redis_url.expose().to_owned(),
        namespace: config.log.namespace.clone(),
        timeout: config.cache.timeout,
        heartbeat: Duration::from_millis(500),
    }
}

/// Tries until it works or cannot work, telling `/readyz` and the log what is waited for.
async fn waiting<T, F, Fut>(
    dependency: Dependency,
    readiness: Readiness,
    mut open: F,
) -> Result<T, OpenError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Attempt>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3));
    loop {
        match open().await {
            Ok(opened) => {
                readiness.note(dependency, Ok(()));
                return Ok(opened);
            }
            Err(Attempt::Never(reason)) => return Err(OpenError(reason)),
            Err(Attempt::Later(reason)) => {
                tracing::warn!(dependency = dependency.as_str(), %reason, "waiting for it");
                readiness.note(dependency, Err(reason));
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}
