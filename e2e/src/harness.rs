//! A pipeline in the test's own process, on ports of its own, with servers' namespaces of its own: any
//! number of them run side by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::Registry;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::auth::Pepper;
use pulsestream_shared::clock;
use pulsestream_shared::config::{self, Config};
use pulsestream_shared::engine::{self, Engine};
use pulsestream_shared::service::{self, Context, Role, RunError};
use pulsestream_shared::shutdown::Shutdown;
use pulsestream_shared::store::postgres::inspect::ScratchDatabase;
use pulsestream_shared::store::postgres::{PostgresConfig, PostgresStore};
use pulsestream_shared::store::sqlite::{SqliteConfig, SqliteStore};
use pulsestream_shared::store::{NewKey, Scope};
use pulsestream_shared::testing::faults::{
    FaultCache, FaultKeyStore, FaultLog, FaultQuery, Faults,
};
use pulsestream_shared::testing::proxy::TcpProxy;
use pulsestream_shared::testing::services;
use pulsestream_shared::testing::store::Inspect;
use pulsestream_shared::testing::wait_for;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::client::{Client, PATIENCE};

/// What stands behind the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engines {
    /// One folder, one process.
    Embedded,
    /// Kafka, PostgreSQL and Redis; one gateway, one consumer, one broadcaster.
    Servers,
}

/// Describes a pipeline; [`Harness::start`] runs it.
pub struct Harness {
    engines: Engines,
    devices: usize,
    variables: BTreeMap<String, String>,
    faults: Option<Faults>,
}

impl Harness {
    /// On the embedded engines, or on the servers.
    pub fn new(engines: Engines) -> Self {
        Self { engines, devices: 1, variables: BTreeMap::new(), faults: None }
    }

    /// How many devices [`Pipeline::devices`] names.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets a setting by its environment variable, such as `MAX_EVENT_AGE`.
    #[must_use]
    pub fn set(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.variables.insert(variable.to_owned(), value.into());
        self
    }

    /// Puts log, cache, keys and queries of every service under this script.
    #[must_use]
    pub fn faults(mut self, faults: &Faults) -> Self {
        self.faults = Some(faults.clone());
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start: a test goes no further.
    pub async fn start(self) -> Pipeline {
        let mut home = Home::new(self.engines, self.variables).await;
        home.faults = self.faults;
        let mut pipeline = Pipeline {
            services: Vec::new(),
            devices: (0..self.devices).map(|_| Uuid::new_v4()).collect(),
            key: String::new(),
            home,
        };
        pipeline.key = pipeline.home.make_key("tenant").await;
        pipeline.start_services().await;
        pipeline
    }
}

/// What outlives the processes: the folder or the servers' namespace, and the settings.
pub struct Home {
    /// Which engines.
    pub engines: Engines,
    /// The settings, as environment variables.
    pub variables: BTreeMap<String, String>,
    /// The database, for tests that look into it.
    pub database: Option<ScratchDatabase>,
    /// The script that log, cache, keys and queries of services started from now on are under.
    pub faults: Option<Faults>,
    _folder: tempfile::TempDir,
}

impl Home {
    /// Puts a proxy before the database, for services that are started from now on.
    ///
    /// # Panics
    /// On a home without servers.
    pub async fn database_through_proxy(&mut self) -> TcpProxy {
        let url = self.variables["DATABASE_URL"].clone();
        let parsed = url.rsplit_once('@').map_or(url.as_str(), |(_, rest)| rest);
        let server = parsed.split('/').next().expect("host and port").to_owned();
        let proxy = TcpProxy::start(server.clone()).await.expect("a proxy");
        let through = url.replace(&server, &proxy.addr().to_string());
        self.variables.insert("DATABASE_URL".to_owned(), through);
        proxy
    }

    /// A fresh one, migrated.
    ///
    /// # Panics
    /// When servers are wanted and absent.
    pub async fn new(engines: Engines, mut variables: BTreeMap<String, String>) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let mut default = |name: &str, value: String| {
            variables.entry(name.to_owned()).or_insert(value);
        };
        default("DATA_DIR", folder.path().join("data").display().to_string());
        let mut database = None;
        if engines == Engines::Servers {
            let scratch =
                ScratchDatabase::create(&services::database_url()).await.expect("a database");
            default("KAFKA_BROKERS", services::kafka_brokers());
            default("DATABASE_URL", scratch.url.clone());
            default("REDIS_URL", services::redis_url());
            default("PULSESTREAM__LOG__NAMESPACE", services::namespace());
            default("PULSESTREAM__LOG__PARTITIONS", "4".to_owned());
            database = Some(scratch);
        }
        let home = Self { engines, variables, _folder: folder, database, faults: None };
        if engines == Engines::Servers {
            let readiness = pulsestream_shared::admin::Readiness::new(&Registry::new(), &[]);
            engine::migrate(&home.config(), &readiness).await.expect("migrated");
        }
        home
    }

    /// Removes the database; the folder goes by itself.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn remove(self) {
        if let Some(database) = self.database {
            database.remove().await.expect("removed");
        }
    }

    /// The settings in force.
    ///
    /// # Panics
    /// When a test sets something invalid.
    pub fn config(&self) -> Config {
        let variables = self.variables.clone().into_iter();
        config::load(None, variables, &[]).expect("valid settings").config
    }

    /// Makes an API key of a client with all scopes, as `pulsestream keys create` does.
    ///
    /// # Panics
    /// When the store refuses.
    pub async fn make_key(&self, client: &str) -> String {
        self.make_key_with(client, &[Scope::EventsWrite, Scope::EventsRead], None).await
    }

    /// Makes an API key of a client with these scopes and that end, unix milliseconds.
    ///
    /// # Panics
    /// When the store refuses.
    pub async fn make_key_with(
        &self,
        client: &str,
        scopes: &[Scope],
        expires_at_ms: Option<i64>,
    ) -> String {
        let config = self.config();
        let stores = engine::open_store(&config).await.expect("store");
        let pepper = Pepper::load(&config.keys, stores.keys.as_ref()).await.expect("pepper");
        let key = format!("ps_test_{}", Uuid::new_v4().simple());
        let new = NewKey {
            hash: pepper.hash(&key),
            prefix: key.chars().take(20).collect(),
            client_name: client.to_owned(),
            scopes: scopes.to_vec(),
            rate: None,
            burst: None,
            created_at_ms: clock::unix_ms(),
            expires_at_ms,
        };
        stores.keys.create(new).await.expect("key");
        key
    }

    /// Looks into the tables beside the running services.
    ///
    /// # Panics
    /// When there is no database yet.
    pub async fn tables(&self) -> Box<dyn Inspect> {
        match &self.database {
            Some(database) => {
                let config = PostgresConfig::new(database.url.clone());
                Box::new(PostgresStore::open(config).await.expect("a store"))
            }
            None => {
                let path = self.config().embedded.data_dir.join("store.db");
                Box::new(SqliteStore::open(SqliteConfig::new(path)).await.expect("a store"))
            }
        }
    }
}

/// A running service.
pub struct Running {
    /// Where it listens.
    pub url: String,
    /// Its ports, to look behind its back.
    pub engine: Engine,
    /// Its metrics.
    pub registry: Registry,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Drains it, as SIGTERM does, and waits for its end.
    ///
    /// # Panics
    /// When it ends with an error.
    pub async fn stop(mut self) {
        self.shutdown.drain.cancel();
        (&mut self.task).await.expect("no panic").expect("a clean end");
    }
}

/// A test that fails leaves no service behind, on whose thread the runtime would wait for ever.
impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.drain.cancel();
    }
}

/// A running pipeline.
pub struct Pipeline {
    /// Embedded: one. Servers: gateway, consumer, broadcaster, in this order.
    pub services: Vec<Running>,
    /// Devices of the test.
    pub devices: Vec<Uuid>,
    /// An API key with the scopes to write and read.
    pub key: String,
    /// What stays when the services are stopped.
    pub home: Home,
}

impl Pipeline {
    /// Talks to the gateway as the first tenant.
    pub fn client(&self) -> Client {
        Client::new(self.gateway_url(), &self.key)
    }

    /// Where devices post.
    pub fn gateway_url(&self) -> &str {
        &self.services[0].url
    }

    /// Where dashboards connect.
    pub fn stream_url(&self) -> &str {
        &self.services[self.services.len() - 1].url
    }

    /// The ports of the first service.
    pub fn engine(&self) -> &Engine {
        &self.services[0].engine
    }

    /// Stops every service and keeps what is stored.
    pub async fn stop_services(&mut self) {
        for service in self.services.drain(..) {
            service.stop().await;
        }
    }

    /// Starts the services (again) on what is stored.
    pub async fn start_services(&mut self) {
        match self.home.engines {
            Engines::Embedded => {
                let all = start(&self.home, pulsestream::ROLE, pulsestream::build).await;
                self.services.push(all);
            }
            Engines::Servers => {
                self.services.push(start_gateway(&self.home).await);
                let consumer =
                    start(&self.home, pulsestream_consumer::ROLE, pulsestream_consumer::build);
                self.services.push(consumer.await);
                self.services.push(start_broadcaster(&self.home).await);
            }
        }
    }

    /// Stops everything and removes what it stored.
    pub async fn stop(mut self) {
        self.stop_services().await;
        self.home.remove().await;
    }
}

/// One more gateway on the same home.
pub async fn start_gateway(home: &Home) -> Running {
    start(home, pulsestream_gateway::ROLE, async |context: Context| {
        let keyring = Keyring::open(&context).await?;
        pulsestream_gateway::build(context, keyring).await
    })
    .await
}

/// One more broadcaster on the same home.
pub async fn start_broadcaster(home: &Home) -> Running {
    start(home, pulsestream_broadcaster::ROLE, async |context: Context| {
        let keyring = Keyring::open(&context).await?;
        pulsestream_broadcaster::build(context, keyring).await
    })
    .await
}

/// A gateway and a broadcaster in one process, for the embedded log has room for no second one; no consumer.
pub async fn start_gateway_and_broadcaster(home: &Home) -> Running {
    start(home, pulsestream_broadcaster::ROLE, async |context: Context| {
        let keyring = Keyring::open(&context).await?;
        let gateway = pulsestream_gateway::build(context.clone(), keyring.clone()).await?;
        let broadcaster = pulsestream_broadcaster::build(context, keyring).await?;
        Ok(gateway.merge(broadcaster))
    })
    .await
}

/// Starts one service and waits until it is built.
///
/// # Panics
/// When it ends before that.
pub async fn start<Build, Built>(home: &Home, role: Role, build: Build) -> Running
where
    Build: FnOnce(Context) -> Built + Send + 'static,
    Built: Future<Output = Result<service::Routes, engine::OpenError>> + Send,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (registry, shutdown) = (Registry::new(), Shutdown::default());
    let (built, engine) = oneshot::channel();
    let faults = home.faults.clone();
    let build = async move |mut context: Context| {
        if let Some(faults) = faults {
            let engine = &mut context.engine;
            engine.log = Arc::new(FaultLog::new(engine.log.clone(), faults.clone()));
            engine.query = Arc::new(FaultQuery::new(engine.query.clone(), faults.clone()));
            engine.cache = Arc::new(FaultCache::new(engine.cache.clone(), faults.clone()));
            engine.keys = Arc::new(FaultKeyStore::new(engine.keys.clone(), faults));
        }
        let engine = context.engine.clone();
        let router = build(context).await?;
        drop(built.send(engine));
        Ok(router)
    };
    let config = Arc::new(home.config());
    // On a thread of its own, as a process would: `main` drives it with `block_on` too, so it need not
    // be `Send`.
    let runtime = tokio::runtime::Handle::current();
    let task = tokio::task::spawn_blocking({
        let (registry, shutdown) = (registry.clone(), shutdown.clone());
        move || runtime.block_on(service::run(role, listener, config, registry, shutdown, build))
    });
    match engine.await {
        Ok(engine) => {
            // Built, but its routes take over a moment later.
            wait_for("its own routes", PATIENCE, async || {
                let answer = Client::new(&url, "").get("/readyz").await;
                answer.is_ok_and(|answer| answer.body["status"] != "STARTING")
            })
            .await;
            Running { url, engine, registry, shutdown, task }
        }
        Err(_) => panic!("{} did not start: {:?}", role.name, task.await),
    }
}
