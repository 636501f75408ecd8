//! A Kafka of a test's own, to be hung and killed: one node, or three that keep three replicas.

use std::net::SocketAddr;
use std::path::PathBuf;

use futures_util::future::join_all;
use tokio::sync::{Mutex, MutexGuard};

use crate::own_services::{self, OwnServices, gone, signal, up};

/// Its data live in a scratch folder; it ends with this value.
pub(crate) struct OwnKafka {
    /// Its address, or its addresses.
    pub(crate) brokers: String,
    /// By their numbers, which begin at 1.
    pub(crate) nodes: Vec<Node>,
    services: OwnServices,
    /// Given up last.
    _turn: Option<MutexGuard<'static, ()>>,
}

/// One cluster at a time: what two of them and their load do to a machine of two cores makes answers late.
static CLUSTERS: Mutex<()> = Mutex::const_new(());

/// One process of it.
#[derive(Clone)]
pub(crate) struct Node {
    /// As `scripts/services` calls it.
    name: &'static str,
    root: PathBuf,
}

impl OwnKafka {
    /// One node.
    pub(crate) async fn start() -> Self {
        Self::of(&["kafka"], None).await
    }

    /// Three nodes.
    pub(crate) async fn cluster() -> Self {
        let turn = CLUSTERS.lock().await;
        Self::of(&["kafka-1", "kafka-2", "kafka-3"], Some(turn)).await
    }

    async fn of(names: &[&'static str], turn: Option<MutexGuard<'static, ()>>) -> Self {
        let services = OwnServices::new();
        let printed = up(services.root(), names).await;
        let brokers = own_services::exported(&printed, "KAFKA_BROKERS");
        let node = |name| Node { name, root: services.root().to_owned() };
        let nodes = names.iter().copied().map(node).collect();
        Self { brokers, nodes, services, _turn: turn }
    }

    /// The node of that number.
    pub(crate) fn node(&self, number: i32) -> &Node {
        &self.nodes[usize::try_from(number - 1).expect("a number from 1")]
    }

    /// Sends every node a signal by name, such as `STOP`.
    pub(crate) async fn signal(&self, name: &str) {
        join_all(self.nodes.iter().map(|node| node.signal(name))).await;
    }

    /// `kill -9` to every node; their data stay.
    pub(crate) async fn kill(&self) {
        join_all(self.nodes.iter().map(Node::kill)).await;
    }

    /// Starts every node again on its data and port; returns when they answer.
    pub(crate) async fn restart(&self) {
        let names: Vec<_> = self.nodes.iter().map(|node| node.name).collect();
        up(self.services.root(), &names).await;
    }
}

impl Node {
    /// Sends it a signal by name.
    pub(crate) async fn signal(&self, name: &str) {
        signal(name, &[self.pid()]).await;
    }

    /// `kill -9`; its data stay. Returns when it is gone.
    pub(crate) async fn kill(&self) {
        self.signal("KILL").await;
        gone(&self.pid()).await;
    }

    /// Starts it again on its data and port; returns when it answers.
    pub(crate) async fn restart(&self) {
        up(&self.root, &[self.name]).await;
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.noted("port"))
    }

    fn pid(&self) -> String {
        self.noted("pid")
    }

    fn noted(&self, what: &str) -> String {
        own_services::noted(&self.root, self.name, what)
    }

    /// Starts it anew as one whose address is that one, to clients and to the other nodes.
    pub(crate) async fn be_called(&self, address: SocketAddr) {
        self.kill().await;
        let path = self.path("server.properties");
        let settings = std::fs::read_to_string(&path).expect("settings");
        let (own, other) = (self.address(), address.to_string());
        let lines = settings.lines().map(|line| match line.strip_prefix("advertised.listeners=") {
            Some(listener) => {
                format!("advertised.listeners={}\n", listener.replace(&own, &other))
            }
            None => format!("{line}\n"),
        });
        std::fs::write(&path, lines.collect::<String>()).expect("settings");
        self.restart().await;
    }

    /// A file or folder of it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(self.name).join(name)
    }
}
