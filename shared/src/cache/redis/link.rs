//! One connection to Redis that answers in time or not at all.
//!
//! The client library's `ConnectionManager` reconnects when a socket dies. Two things it does not do are
//! done here: it never gives up a socket that has merely gone *silent* (a frozen server, a dropped
//! flow), and it stays broken for ever when a hand-shake was answered by an error (`LOADING`, a wrong
//! password since put right). Both are cured by starting afresh.

use std::sync::Mutex;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisError, RedisResult, Value,
};
use tokio::time::Instant;

/// Commands that may wait for the socket at once. The library's default of 50 makes callers queue
/// behind each other long before the server is busy.
const PIPELINE_BUFFER: usize = 4_096;

/// How many timeouts a connection attempt may take: it needs several round trips.
const CONNECT_TIMEOUTS: u32 = 5;

/// The client for an URL: RESP3 (so that a cut is noticed at once, even when idle) and no Nagle delay
/// (off by default in the library, and worth up to 40 ms a call).
pub(crate) fn client(url: &str) -> RedisResult<Client> {
    let info = url.into_connection_info()?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true);
    Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// How long a connection attempt may take when a call may take `timeout`.
pub(crate) fn connect_timeout(timeout: Duration) -> Duration {
    timeout * CONNECT_TIMEOUTS
}

/// A connection shared by any number of callers, replaced when it turns out useless.
pub(crate) struct Link {
    client: Client,
    timeout: Duration,
    slot: Mutex<Slot>,
}

struct Slot {
    manager: ConnectionManager,
    number: u64,
    since: Instant,
}

impl Link {
    /// Prepares a connection; the first call makes it. Must be called within a runtime.
    pub(crate) fn new(client: Client, timeout: Duration) -> RedisResult<Self> {
        let manager = manager(&client, timeout)?;
        let slot = Mutex::new(Slot { manager, number: 0, since: Instant::now() });
        Ok(Self { client, timeout, slot })
    }

    /// Sends commands in one go and returns a value for each: `Value::ServerError` for one that the
    /// server refused. Commands of one call are executed in order.
    ///
    /// # Errors
    /// A sentence, after the timeout at the latest; any of the commands may have been executed.
    pub(crate) async fn call(&self, pipeline: &Pipeline) -> Result<Vec<Value>, String> {
        let (number, manager) = {
            let slot = self.slot();
            (slot.number, slot.manager.clone())
        };
        match tokio::time::timeout(self.timeout, send(manager, pipeline)).await {
            Ok(Ok(values)) => Ok(values),
            Ok(Err(error)) => {
                if !reconnects_by_itself(&error) {
                    self.replace(number);
                }
                Err(error.to_string())
            }
            Err(_) => {
                self.replace(number);
                Err(format!("no answer from Redis within {} ms", self.timeout.as_millis()))
            }
        }
    }

    /// Like [`Link::call`] for one command.
    ///
    /// # Errors
    /// As [`Link::call`], and the server's own refusal.
    pub(crate) async fn call_one(&self, command: redis::Cmd) -> Result<Value, String> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        match self.call(&pipeline).await?.pop() {
            Some(value) => unless_refused(value),
            None => Err("Redis answered nothing".to_owned()),
        }
    }

    /// Starts afresh unless another caller did, or the connection is too young to be judged: without
    /// that pause every call to a frozen server would leave one more half-made connection behind.
    fn replace(&self, number: u64) {
        let mut slot = self.slot();
        if slot.number != number || slot.since.elapsed() < connect_timeout(self.timeout) {
            return;
        }
        if let Ok(fresh) = manager(&self.client, self.timeout) {
            *slot = Slot { manager: fresh, number: number + 1, since: Instant::now() };
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The answer, unless it is a refusal.
///
/// # Errors
/// The server's sentence.
pub(crate) fn unless_refused(answer: Value) -> Result<Value, String> {
    match answer {
        Value::ServerError(error) => Err(RedisError::from(error).to_string()),
        answer => Ok(answer),
    }
}

fn manager(client: &Client, timeout: Duration) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_pipeline_buffer_size(PIPELINE_BUFFER)
        .set_response_timeout(Some(timeout))
        .set_connection_timeout(Some(connect_timeout(timeout)))
        // Each call to an absent server is refused at once and starts the next attempt; with retries
        // inside, callers would wait for the attempts instead.
        .set_number_of_retries(0);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// A refusal may be the remembered one of the last attempt, so it is asked again: nothing was sent yet,
/// and a server that just came back answers the very first call.
async fn send(mut manager: ConnectionManager, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
    match manager.send_packed_commands(pipeline, 0, pipeline.len()).await {
        Err(error) if error.is_connection_refusal() => {
            manager.send_packed_commands(pipeline, 0, pipeline.len()).await
        }
        answered => answered,
    }
}

/// True when the manager starts a new connection after this error by itself.
fn reconnects_by_itself(error: &RedisError) -> bool {
    error.is_io_error() && error.is_unrecoverable_error()
}
