//! Keys while the database, or the database and Redis, cannot be asked.

use std::time::Duration;

use pulsestream_e2e::client::{Answer, Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Running, start_gateway};
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::wait_for;
use tokio::time::Instant;
use uuid::Uuid;

use crate::outage::proxied;
use crate::support::{Site, counter};

/// No answer takes longer: a lookup may take 500 ms, and Redis 100 ms before it.
const QUICK: Duration = Duration::from_millis(1_500);

/// A gateway that asks for every key again after a second, its database and its Redis behind proxies.
struct Outage {
    site: Site,
    gateway: Running,
    database: TcpProxy,
    redis: TcpProxy,
    cold: String,
}

impl Outage {
    async fn prepare() -> Self {
        let short = [("PULSESTREAM__KEYS__PROCESS_TTL", "1s")];
        let mut site = Site::with(Engines::Servers, &short).await;
        let cold = site.home.make_key("cold").await;
        let database = proxied(&mut site, "DATABASE_URL").await;
        let redis = proxied(&mut site, "REDIS_URL").await;
        let gateway = start_gateway(&site.home).await;
        let outage = Self { site, gateway, database, redis, cold };
        assert_eq!(outage.post(&outage.site.key).await.status, 202);
        outage
    }

    async fn post(&self, key: &str) -> Answer {
        let client = Client::new(&self.gateway.url, key);
        let asked = Instant::now();
        let answer = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await;
        assert!(asked.elapsed() < QUICK, "{:?}: {answer:?}", asked.elapsed());
        answer.expect("an answer")
    }

    fn stale(&self) -> u64 {
        counter(&self.gateway.registry, "key_lookups_total", Some(("result", "stale")))
    }

    /// Key and status of what goes on and what does not, several times over.
    async fn warm_keys_go_on_and_others_wait(&self) {
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let known = self.post(&self.site.key).await;
            assert_eq!(known.status, 202, "{known:?}");
            for other in [&self.cold, "ps_test_nobody"] {
                let answer = self.post(other).await;
                assert_eq!(answer.status, 503, "nobody can say that {other} is wrong: {answer:?}");
                assert_eq!(answer.body["code"], "unavailable");
                assert!(!answer.header("retry-after").is_empty());
            }
        }
    }

    async fn recovers(self) {
        self.database.restore();
        self.redis.restore();
        wait_for("cold keys to work", PATIENCE, async || self.post(&self.cold).await.status == 202)
            .await;
        wait_for("unknown keys to be told so", PATIENCE, async || {
            self.post("ps_test_nobody").await.status == 401
        })
        .await;
        wait_for("keys to be fresh", PATIENCE, async || {
            let before = self.stale();
            assert_eq!(self.post(&self.site.key).await.status, 202);
            self.stale() == before
        })
        .await;
        self.gateway.stop().await;
        self.site.remove().await;
    }
}

async fn with_both_away(break_it: fn(&TcpProxy)) {
    let outage = Outage::prepare().await;
    break_it(&outage.database);
    break_it(&outage.redis);
    outage.warm_keys_go_on_and_others_wait().await;
    assert!(outage.stale() > 0, "no counter says that keys are stale");
    outage.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_go_on_while_redis_and_the_database_refuse() {
    with_both_away(TcpProxy::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_go_on_while_redis_and_the_database_hang() {
    with_both_away(|proxy| proxy.set(Traffic::Pause)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_go_on_while_the_database_alone_is_away() {
    let outage = Outage::prepare().await;
    outage.database.kill();
    outage.warm_keys_go_on_and_others_wait().await;
    outage.recovers().await;
}
