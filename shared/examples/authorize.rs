//! What a request pays for its API key when the key is known: nanoseconds per `Keyring::authorize`, on one
//! thread and on two at once.
//!
//! `cargo run --release -p pulsestream-shared --example authorize`

#![expect(clippy::print_stdout, reason = "it prints what it measured")]

use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue};
use prometheus::Registry;
use pulsestream_shared::admin::Readiness;
use pulsestream_shared::auth::{Keyring, Pepper};
use pulsestream_shared::config::{self, Config};
use pulsestream_shared::engine::Engine;
use pulsestream_shared::service::Context;
use pulsestream_shared::shutdown::Shutdown;
use pulsestream_shared::store::{NewKey, Scope};
use pulsestream_shared::traces::Traces;
use pulsestream_shared::{clock, metrics};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const KEYS: usize = 1_000;
const CALLS: usize = 2_000_000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("authorize-{}", std::process::id()));
    let dir = ("DATA_DIR".to_owned(), folder.display().to_string());
    let config = config::load(None, std::iter::once(dir), &[]).map_err(|e| e.to_string())?.config;
    let context = open(config).await?;
    let keyring = Keyring::open(&context).await?;
    let keys = Arc::new(make_keys(&context).await?);
    for round in 1..=3 {
        run(keyring.clone(), keys.clone(), KEYS).await?;
        let alone = run(keyring.clone(), keys.clone(), CALLS).await?;
        let one = tokio::spawn(run(keyring.clone(), keys.clone(), CALLS));
        let two = tokio::spawn(run(keyring.clone(), keys.clone(), CALLS));
        let (one, two) = (one.await??, two.await??);
        println!("round {round}: {alone:.0} ns alone, {:.0} ns each of two", (one + two) / 2.0);
    }
    context.shutdown.stop.cancel();
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

async fn open(config: Config) -> Result<Context, Failure> {
    let registry = Registry::new();
    let readiness = Readiness::new(&registry, &[]);
    Ok(Context {
        engine: Engine::open(&config, &readiness, &registry).await?,
        config: Arc::new(config),
        freshness: metrics::freshness(&registry),
        traces: Traces::default(),
        registry,
        readiness,
        shutdown: Shutdown::default(),
        tasks: TaskTracker::new(),
        failed: CancellationToken::new(),
    })
}

async fn make_keys(context: &Context) -> Result<Vec<HeaderMap>, Failure> {
    let store = context.engine.keys.as_ref();
    let pepper = Pepper::load(&context.config.keys, store).await?;
    let mut keys = Vec::new();
    for number in 0..KEYS {
        let key = format!("ps_live_{number:032}");
        let new = NewKey {
            hash: pepper.hash(&key),
            prefix: format!("{number}"),
            client_name: "a tenant of some name".to_owned(),
            scopes: vec![Scope::EventsWrite, Scope::EventsRead],
            rate: None,
            burst: None,
            created_at_ms: clock::unix_ms(),
            expires_at_ms: None,
        };
        store.create(new).await?;
        keys.push(HeaderMap::from_iter([("x-api-key".parse()?, HeaderValue::from_str(&key)?)]));
    }
    Ok(keys)
}

/// Nanoseconds a call.
async fn run(
    keyring: Arc<Keyring>,
    keys: Arc<Vec<HeaderMap>>,
    calls: usize,
) -> Result<f64, Failure> {
    let started = Instant::now();
    for headers in keys.iter().cycle().take(calls) {
        let key = keyring.authorize(headers, Scope::EventsWrite).await;
        std::hint::black_box(key.map_err(|problem| problem.code().as_str())?);
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / calls as f64)
}
