//! The bus under a script.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Faults, Method, Struck};
use crate::bus::{Bus, BusError, BusEvent, Channel, Subscription};

/// [`Bus`] that fails as told.
///
/// [`Method::Subscribe`] cannot fail, only hang. [`Method::SubscriptionNext`] failing *before* says
/// `Cut`; failing *after* swallows one event and says `Lagged`.
pub struct FaultBus {
    inner: Arc<dyn Bus>,
    faults: Faults,
}

impl FaultBus {
    /// Wraps a bus.
    pub fn new(inner: Arc<dyn Bus>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Bus for FaultBus {
    async fn publish(&self, messages: &[(Channel, Bytes)]) -> Result<(), BusError> {
        let call = self.inner.publish(messages);
        self.faults.around(Method::Publish, call, |struck| Err(BusError(struck.text()))).await
    }

    async fn subscribe(&self, channels: &[Channel]) -> Box<dyn Subscription> {
        // Only the waiting is taken from the script: a subscription has no way to fail.
        self.faults.around(Method::Subscribe, std::future::ready(()), |_struck| ()).await;
        let inner = self.inner.subscribe(channels).await;
        Box::new(FaultSubscription { inner, faults: self.faults.clone() })
    }
}

struct FaultSubscription {
    inner: Box<dyn Subscription>,
    faults: Faults,
}

#[async_trait]
impl Subscription for FaultSubscription {
    async fn next(&mut self) -> Option<BusEvent> {
        match self.faults.interrupt(Method::SubscriptionNext).await {
            None => self.inner.next().await,
            Some(Struck::Before) => Some(BusEvent::Cut),
            Some(Struck::After) => {
                self.inner.next().await?;
                Some(BusEvent::Lagged)
            }
        }
    }
}
