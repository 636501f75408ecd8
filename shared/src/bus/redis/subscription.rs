//! One subscription: a task that keeps a connection subscribed for as long as somebody listens.
//!
//! The library calls [`Feed::take`] from the task that reads the socket, for confirmations, messages and
//! the end of the connection alike, so what the reader hears has the order of the socket.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use super::RedisBusConfig;
use super::packed::unpack;
use crate::bus::queue::Queue;
use crate::bus::{BusEvent, Channel, Subscription};
use crate::cache::redis::link::connect_timeout;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What a subscription is to hear.
pub(super) struct Wanted {
    /// Redis' names of its channels.
    pub(super) names: HashSet<Vec<u8>>,
    /// The one on which live messages come.
    pub(super) live: Vec<u8>,
    pub(super) channels: HashSet<Channel>,
}

pub(super) struct RedisSubscription {
    queue: Arc<Queue>,
    /// Stops the task, and with it the connection, when the subscription is dropped.
    _task: AbortOnDropHandle<()>,
}

impl RedisSubscription {
    pub(super) fn start(client: Client, config: RedisBusConfig, wanted: Wanted) -> Self {
        let queue = Arc::new(Queue::default());
        let keeper = Keeper { client, config, wanted: Arc::new(wanted), queue: Arc::clone(&queue) };
        Self { queue, _task: AbortOnDropHandle::new(tokio::spawn(keeper.run())) }
    }
}

#[async_trait]
impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Option<BusEvent> {
        self.queue.next().await
    }
}

struct Keeper {
    client: Client,
    config: RedisBusConfig,
    wanted: Arc<Wanted>,
    queue: Arc<Queue>,
}

impl Keeper {
    async fn run(self) {
        let mut number = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let feed = Arc::new(Feed::new(number, &self.wanted, &self.queue));
            match self.connect(&feed).await {
                Ok(connection) => {
                    pause = FIRST_PAUSE;
                    let reason = self.until_lost(connection, &feed).await;
                    number = self.queue.cut();
                    tracing::warn!(reason, "redis subscription cut; reconnecting");
                }
                Err(error) => {
                    tracing::debug!(%error, "redis subscription not made");
                    if feed.confirmed() {
                        // Every channel was confirmed, and then our own answer got lost.
                        number = self.queue.cut();
                    }
                }
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn connect(&self, feed: &Arc<Feed>) -> Result<MultiplexedConnection, String> {
        let taker = Arc::clone(feed);
        let limit = connect_timeout(self.config.timeout);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(self.config.heartbeat))
            .set_push_sender(move |push| {
                taker.take(push);
                Ok::<(), SendError>(())
            });
        let attempt = async {
            let mut connection =
                self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let names: Vec<&[u8]> = self.wanted.names.iter().map(Vec::as_slice).collect();
            connection.subscribe(names).await?;
            RedisResult::Ok(connection)
        };
        match tokio::time::timeout(limit, attempt).await {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no subscription within {} ms", limit.as_millis())),
        }
    }

    /// Returns when the connection is gone, or silent for longer than the heartbeat allows.
    async fn until_lost(&self, mut connection: MultiplexedConnection, feed: &Feed) -> String {
        loop {
            tokio::select! {
                () = feed.lost.notified() => return "connection closed".to_owned(),
                () = tokio::time::sleep(self.config.heartbeat) => {}
            }
            let ping = redis::cmd("PING");
            if let Err(error) = connection.send_packed_command(&ping).await {
                return error.to_string();
            }
        }
    }
}

/// Takes what one connection delivers.
struct Feed {
    number: u64,
    wanted: Arc<Wanted>,
    queue: Arc<Queue>,
    unconfirmed: AtomicUsize,
    lost: Notify,
}

impl Feed {
    fn new(number: u64, wanted: &Arc<Wanted>, queue: &Arc<Queue>) -> Self {
        Self {
            number,
            wanted: Arc::clone(wanted),
            queue: Arc::clone(queue),
            unconfirmed: AtomicUsize::new(wanted.names.len()),
            lost: Notify::new(),
        }
    }

    fn confirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::Acquire) == 0
    }

    fn take(&self, push: PushInfo) {
        match push.kind {
            PushKind::Message => self.message(push.data),
            PushKind::Subscribe if self.unconfirmed.fetch_sub(1, Ordering::AcqRel) == 1 => {
                self.queue.restored(self.number);
            }
            PushKind::Disconnection => self.lost.notify_one(),
            _ => {}
        }
    }

    /// Messages that come before every channel is confirmed are dropped: nothing is promised yet.
    fn message(&self, data: Vec<Value>) {
        let Ok([Value::BulkString(name), Value::BulkString(message)]) =
            <[Value; 2]>::try_from(data)
        else {
            return;
        };
        if !self.confirmed() {
            return;
        }
        if name != self.wanted.live {
            return self.queue.message(self.number, Channel::Keys, message.into());
        }
        for (partition, message) in unpack(message.into()) {
            let channel = Channel::Live(partition);
            if self.wanted.channels.contains(&channel) {
                self.queue.message(self.number, channel, message);
            }
        }
    }
}
