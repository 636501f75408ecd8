//! What subscribers hold now. It is counted when it is asked for: kept up with each event, it would cost
//! every event.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};
use pulsestream_shared::service::Context;

use crate::feed::Feed;
use crate::registry::Registry;

/// Two gauges, set whenever somebody looks.
#[derive(Clone)]
pub(crate) struct Load {
    registry: Arc<Registry>,
    feed: Arc<Feed>,
    subscriptions: IntGauge,
    queue_bytes: IntGauge,
}

/// What they say.
pub(crate) struct Held {
    pub(crate) subscriptions: i64,
    pub(crate) queue_bytes: i64,
}

impl Load {
    pub(crate) fn new(context: &Context, registry: Arc<Registry>, feed: Arc<Feed>) -> Self {
        let gauge = |name, help| {
            let opts = Opts::new(name, help).namespace("pulsestream");
            IntGauge::with_opts(opts).expect("metric names are literals")
        };
        let load = Self {
            registry,
            feed,
            subscriptions: gauge("live_subscriptions", "Subscriptions of all open streams."),
            queue_bytes: gauge(
                "live_queue_bytes",
                "Bytes of events that subscribers have not taken yet; what several share is counted once.",
            ),
        };
        if let Err(error) = context.registry.register(Box::new(load.clone())) {
            tracing::error!(%error, "metric not registered");
        }
        load
    }

    /// Looks.
    pub(crate) fn held(&self) -> Held {
        let ((plain, queued), (placed, shared)) = (self.registry.load(), self.feed.load());
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.subscriptions.set(whole(plain + placed));
        self.queue_bytes.set(whole(queued + shared));
        Held { subscriptions: self.subscriptions.get(), queue_bytes: self.queue_bytes.get() }
    }
}

impl Collector for Load {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.subscriptions, &self.queue_bytes];
        gauges.into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.held();
        let gauges = [&self.subscriptions, &self.queue_bytes];
        gauges.into_iter().flat_map(Collector::collect).collect()
    }
}
