//! What `pulsestream` runs: all three services in one process, or one of them.

use prometheus::Registry;
use pulsestream_shared::admin::Readiness;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::config::Config;
use pulsestream_shared::engine::{self, OpenError};
use pulsestream_shared::process::{self, Failure};
use pulsestream_shared::service::Context;

use crate::banner;

/// Everything in one process. With servers configured, their topics and tables are made first.
pub(crate) async fn up(config: Config) -> Result<(), Failure> {
    if engine::is_distributed(&config) {
        migrate(config.clone()).await?;
    }
    let port = config.server.port;
    let (told, address) = tokio::sync::oneshot::channel();
    let build = async |context: Context| {
        let router = crate::build(context.clone()).await?;
        let address = address.await.map_err(|_| OpenError("no listener".to_owned()))?;
        banner::print(&context, address).await?;
        Ok(router)
    };
    let tell = |address| {
        if told.send(address).is_err() {
            tracing::debug!("ended before it was built");
        }
    };
    process::run(crate::ROLE, config, port, build, tell).await
}

pub(crate) async fn gateway(config: Config) -> Result<(), Failure> {
    let config = distributed(config, "gateway")?;
    let port = config.server.port;
    let build = async |context: Context| {
        let keyring = Keyring::open(&context).await?;
        pulsestream_gateway::build(context, keyring).await
    };
    process::run(pulsestream_gateway::ROLE, config, port, build, |_| {}).await
}

pub(crate) async fn consumer(config: Config) -> Result<(), Failure> {
    let config = distributed(config, "consumer")?;
    let port = config.server.consumer_port;
    process::run(pulsestream_consumer::ROLE, config, port, pulsestream_consumer::build, |_| {})
        .await
}

pub(crate) async fn broadcaster(config: Config) -> Result<(), Failure> {
    let config = distributed(config, "broadcaster")?;
    let port = config.server.broadcaster_port;
    let build = async |context: Context| {
        let keyring = Keyring::open(&context).await?;
        pulsestream_broadcaster::build(context, keyring).await
    };
    process::run(pulsestream_broadcaster::ROLE, config, port, build, |_| {}).await
}

pub(crate) async fn migrate(config: Config) -> Result<(), String> {
    let readiness = Readiness::new(&Registry::new(), &[]);
    engine::migrate(&config, &readiness).await.map_err(|error| error.to_string())?;
    tracing::info!("topics and tables are there");
    Ok(())
}

/// A service alone in its process shares everything with others over servers.
fn distributed(config: Config, role: &str) -> Result<Config, String> {
    let missing: Vec<_> = engine::missing_servers(&config);
    if missing.is_empty() {
        return Ok(config);
    }
    Err(format!(
        "a {role} of its own needs {}; to run everything in one process without servers, run \
         `pulsestream`",
        missing.join(", ")
    ))
}
