//! The bus on Redis Pub/Sub.
//!
//! Publishing is pipelined on a shared connection. Each subscription has a connection of its own whose socket is always
//! drained: Redis disconnects a subscriber that does not read.
//!
//! Redis knows two channels, `NAMESPACE live` and `NAMESPACE keys` without the space. Live messages of one publish are
//! one message there ([`packed`]), whatever their partitions; a subscription drops those it did not ask for, and nobody
//! asks for a part. Sharded Pub/Sub, a channel a partition, is not used: `SSUBSCRIBE` must go to the node that owns the
//! slot, which takes the library's cluster client. Plain `PUBLISH` is correct on a cluster too, every node passes every
//! message on.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Client, Pipeline};

use super::{Bus, BusError, Channel, Subscription};
use crate::cache::redis::link::{self, Link, unless_refused};

mod packed;
mod subscription;

use packed::pack;
use subscription::{RedisSubscription, Wanted};

/// Where the Redis is and how patient the bus is with it.
#[derive(Debug, Clone)]
pub struct RedisBusConfig {
    /// `redis://[user:password@]host[:port][/db]`.
    pub url: String,
    /// Put before every channel, so that pipelines can share a server.
    pub namespace: String,
    /// After which a publish fails; 100 ms.
    pub timeout: Duration,
    /// How often a subscriber's connection is asked for a sign of life, and how long the answer may
    /// take before the connection counts as cut; 500 ms.
    pub heartbeat: Duration,
}

/// [`Bus`] on Redis Pub/Sub.
///
/// A publish that failed by timeout may still happen, even after a later one: it lies in the socket of
/// a frozen server.
pub struct RedisBus {
    client: Client,
    link: Link,
    config: RedisBusConfig,
}

impl RedisBus {
    /// Prepares the bus; connects when first used. Must be called within a runtime.
    ///
    /// # Errors
    /// [`BusError`] when the URL cannot be used. An absent server is no error.
    pub fn open(config: RedisBusConfig) -> Result<Self, BusError> {
        let unusable = |error: redis::RedisError| BusError(error.to_string());
        let client = link::client(&config.url).map_err(unusable)?;
        let link = Link::new(client.clone(), config.timeout).map_err(unusable)?;
        Ok(Self { client, link, config })
    }

    fn name(&self, channel: Channel) -> String {
        match channel {
            Channel::Live(_) => self.live(),
            Channel::Keys => format!("{}keys", self.config.namespace),
        }
    }

    fn live(&self) -> String {
        format!("{}live", self.config.namespace)
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn publish(&self, messages: &[(Channel, Bytes)]) -> Result<(), BusError> {
        if messages.is_empty() {
            return Ok(()); // to nothing the library would wait for an answer
        }
        let live = messages.iter().filter_map(|(channel, message)| match channel {
            Channel::Live(partition) => Some((*partition, message)),
            Channel::Keys => None,
        });
        let keys = messages.iter().filter(|(channel, _)| *channel == Channel::Keys);
        let mut pipeline = Pipeline::new();
        if let Some(live) = pack(live) {
            pipeline.cmd("PUBLISH").arg(self.live()).arg(&live[..]);
        }
        for (channel, message) in keys {
            pipeline.cmd("PUBLISH").arg(self.name(*channel)).arg(&message[..]);
        }
        let answers = self.link.call(&pipeline).await.map_err(BusError)?;
        let receivers = answers.into_iter().try_for_each(|answer| unless_refused(answer).map(drop));
        receivers.map_err(BusError)
    }

    async fn subscribe(&self, channels: &[Channel]) -> Box<dyn Subscription> {
        let names = channels.iter().map(|channel| self.name(*channel).into_bytes()).collect();
        let wanted = Wanted {
            names,
            live: self.live().into_bytes(),
            channels: channels.iter().copied().collect(),
        };
        Box::new(RedisSubscription::start(self.client.clone(), self.config.clone(), wanted))
    }
}

#[cfg(test)]
mod tests;
