//! A server in the state in which it answers as an example says.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use pulsestream_e2e::client::PATIENCE;
use pulsestream_e2e::harness::{Engines, Harness, Home, Pipeline};
use pulsestream_shared::service::{self, Context};
use pulsestream_shared::shutdown::Shutdown;
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::request::{Got, Operation, Request};
use crate::raw::{Raw, head};
use crate::read::{append, bury, doomed, get, status_is};

/// Requests that may be at work at once: two that stall leave no place.
const PLACES: &str = "2";

/// A pipeline whose parts fail as told, and a service beside it that is never ready.
pub(crate) struct World {
    pipeline: Pipeline,
    /// A key with the scope `admin`.
    admin: String,
    faults: Faults,
    starting: Starting,
}

/// One request still to be sent: what it is about, and whose key it carries.
struct Attempt<'w> {
    world: &'w World,
    request: Request,
    device: Uuid,
    event: Uuid,
}

impl World {
    pub(crate) async fn start(engines: Engines) -> Self {
        let faults = Faults::default();
        let pipeline = Harness::new(engines)
            .set("PULSESTREAM__INGEST__MAX_IN_FLIGHT", PLACES)
            .set("PULSESTREAM__INGEST__MAX_BATCH_BYTES", "16384")
            .set("PULSESTREAM__INGEST__BODY_STALL_TIMEOUT", "1s")
            .set("PULSESTREAM__LIMITS__DEVICE_RATE", "1")
            .set("PULSESTREAM__LIMITS__DEVICE_BURST", "4")
            .faults(&faults)
            .start()
            .await;
        let starting = Starting::start(&pipeline.home).await;
        let admin = pipeline.home.make_key_with("operator", &[Scope::Admin], None).await;
        Self { pipeline, admin, faults, starting }
    }

    pub(crate) async fn document(&self) -> Value {
        self.pipeline.client().get("/openapi.json").await.expect("an answer").body
    }

    pub(crate) async fn stop(self) {
        self.starting.stop().await;
        self.pipeline.stop().await;
    }

    fn url(&self) -> &str {
        self.pipeline.gateway_url()
    }

    /// Gets the answer of the example by that name.
    pub(crate) async fn provoke(&self, operation: &Operation<'_>, name: &str) -> Got {
        let (device, event) = (Uuid::new_v4(), Uuid::new_v4());
        let mut request = Request::of(operation, name, device, event);
        if let Some(security) = operation.spec.get("security") {
            let admin = security[0]["apiKey"][0] == Scope::Admin.as_str();
            request.set("x-api-key", if admin { &self.admin } else { &self.pipeline.key });
        }
        let attempt = Attempt { world: self, request, device, event };
        match name {
            "starting" | "not_ready" => attempt.request.send(&self.starting.url).await,
            "missing_api_key" | "invalid_api_key" | "forbidden" | "unavailable" => {
                let writes = operation.spec["tags"][0] == "send";
                attempt.with_another_key(name, writes).await
            }
            "overloaded" => attempt.without_a_place().await,
            _ if operation.id == "makeStreamToken" => attempt.token(name).await,
            _ if operation.sends() => attempt.post(name).await,
            _ => attempt.get(operation.id, name).await,
        }
    }
}

impl Attempt<'_> {
    async fn send(&self) -> Got {
        self.request.clone().send(self.world.url()).await
    }

    async fn with_another_key(mut self, name: &str, writes: bool) -> Got {
        let home = &self.world.pipeline.home;
        match name {
            "missing_api_key" => drop(self.request.headers.remove("x-api-key")),
            "invalid_api_key" => self.request.set("x-api-key", "ps_test_nobody"),
            "forbidden" => {
                let other = if writes { Scope::EventsRead } else { Scope::EventsWrite };
                let key = home.make_key_with("tenant", &[other], None).await;
                self.request.set("x-api-key", &key);
            }
            _ => {
                // Nobody knows it yet, and the store cannot be asked.
                self.request.set("x-api-key", &home.make_key("cold").await);
                self.world.faults.next(Method::FindKey, 1, Fault::Before);
            }
        }
        self.send().await
    }

    async fn without_a_place(self) -> Got {
        let mut holders = Vec::new();
        for _ in 0..PLACES.parse().expect("a number") {
            let mut raw = Raw::connect(self.world.url()).await;
            let head = head(&self.world.pipeline.key, Uuid::new_v4(), 200);
            raw.send(format!("{head}\r\n{{")).await;
            holders.push(raw);
        }
        self.world.at_work(PLACES).await;
        let got = self.send().await;
        drop(holders);
        self.world.at_work("0").await;
        got
    }

    async fn post(mut self, name: &str) -> Got {
        let body = &mut self.request.body;
        match name {
            "replayed" => assert_eq!(self.send().await.status, 202),
            "invalid_json" => body.truncate(body.len() - 1),
            "validation_failed" => *body = "{}".to_owned(),
            "batch_invalid" => *body = "[7]".to_owned(),
            "payload_too_large" => body.push_str(&" ".repeat(20_000)),
            "missing_idempotency_key" => drop(self.request.headers.remove("idempotency-key")),
            "invalid_idempotency_key" => self.request.set("idempotency-key", "7"),
            "unsupported_media_type" => self.request.set("content-type", "text/plain"),
            "bad_request" => self.request.set("content-encoding", "gzip"),
            "idempotency_mismatch" => {
                assert_eq!(self.send().await.status, 202);
                self.request.body = self.request.body.replace("21.5", "22.5");
            }
            "request_timeout" => return self.stalled().await,
            "in_progress" => return self.twice_at_once().await,
            "quota_exceeded" => return self.until_refused().await,
            "log_unavailable" => return self.failing(Fault::Before).await,
            "outcome_unknown" => return self.failing(Fault::After).await,
            _ => {}
        }
        self.send().await
    }

    async fn token(mut self, name: &str) -> Got {
        match name {
            "bad_request" => self.request.body = r#"{"deviceId":"nope"}"#.to_owned(),
            "invalid_json" => self.request.body.truncate(self.request.body.len() - 1),
            "payload_too_large" => self.request.body.push_str(&" ".repeat(20_000)),
            "request_timeout" => return self.stalled().await,
            _ => {}
        }
        self.send().await
    }

    /// The head and a part of the body.
    async fn stalled(self) -> Got {
        let mut raw = Raw::connect(self.world.url()).await;
        let mut text = format!("POST {} HTTP/1.1\r\nhost: test\r\n", self.request.path);
        for (name, value) in &self.request.headers {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().expect("text")));
        }
        raw.send(format!("{text}content-length: 200\r\n\r\n{{")).await;
        let heard = raw.answer().await;
        let headers = heard.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers =
            headers.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
        Got { status: heard.status, headers: headers.collect(), text: heard.body.to_string() }
    }

    async fn failing(self, fault: Fault) -> Got {
        self.world.faults.next(Method::Append, 1, fault);
        let got = self.send().await;
        // The breaker of the device's partition may have opened.
        wait_for("the log to be used again", PATIENCE, async || {
            let mut again = self.request.clone();
            again.set("idempotency-key", &Uuid::new_v4().to_string());
            again.send(self.world.url()).await.status == 202
        })
        .await;
        got
    }

    async fn twice_at_once(self) -> Got {
        let (faults, url) = (&self.world.faults, self.world.url().to_owned());
        faults.next(Method::Append, 1, Fault::HangBefore);
        let first = tokio::spawn(self.request.clone().send_owned(url));
        wait_for("the first to hang", PATIENCE, async || faults.hanging() == 1).await;
        let got = self.send().await;
        faults.release();
        assert_eq!(first.await.expect("no panic").status, 202);
        got
    }

    async fn until_refused(mut self) -> Got {
        loop {
            self.request.set("idempotency-key", &Uuid::new_v4().to_string());
            let got = self.send().await;
            if got.status != 202 {
                return got;
            }
        }
    }

    async fn get(mut self, operation: &str, name: &str) -> Got {
        let (faults, client) = (&self.world.faults, self.world.pipeline.client());
        let query = match operation {
            "listEvents" => Method::QueryEvents,
            "readEvent" => Method::QueryEvent,
            "listDevices" => Method::QueryDevices,
            "readDevice" => Method::QueryDevice,
            "listDeadLetters" | "readDeadLetter" => Method::QueryLetters,
            _ => Method::QuerySeries,
        };
        match name {
            "bad_request" => self.request.query.push(("colour".to_owned(), "red".to_owned())),
            "query_timeout" => faults.next(query, 1, Fault::After),
            "pending" => {
                let url = self.world.url().to_owned();
                faults.next(Method::Append, 1, Fault::HangBefore);
                let sending = tokio::spawn(self.sent_before().send_owned(url));
                wait_for("the append to hang", PATIENCE, async || faults.hanging() == 1).await;
                let got = self.send().await;
                faults.release();
                assert_eq!(sending.await.expect("no panic").status, 202);
                return got;
            }
            "dead_lettered" => {
                let id = bury(&self.world.pipeline).await;
                status_is(&client, id, "dead-lettered").await;
                self.request.path = format!("/v1/events/{id}");
            }
            "page" | "last_page" if operation == "listDeadLetters" => {
                self.with_a_dead_letter().await;
                if name == "page" {
                    self.with_a_dead_letter().await;
                    self.request.query.push(("limit".to_owned(), "1".to_owned()));
                }
            }
            "dead" => {
                let letter = self.with_a_dead_letter().await;
                self.request.path = format!("/v1/dead-letters/{letter}");
            }
            "page" | "last_page" | "stored" | "known" | "summed_up" => {
                let sent = self.sent_before().send(self.world.url()).await;
                assert_eq!(sent.status, 202, "{sent:?}");
                status_is(&client, self.event, "stored").await;
                if name == "page" {
                    self.request.query.push(("limit".to_owned(), "1".to_owned()));
                }
            }
            // The one answer without a body: it was got before.
            "" => {
                let etag = self.send().await.header("etag").to_owned();
                self.request.set("if-none-match", &etag);
            }
            _ => {}
        }
        self.send().await
    }

    /// Of the operator, whose key asks; answers its name.
    async fn with_a_dead_letter(&self) -> String {
        let (pipeline, id) = (&self.world.pipeline, Uuid::new_v4());
        append(pipeline, doomed(pipeline, &self.world.admin, id).await).await;
        let operator = pipeline.client().with_key(&self.world.admin);
        status_is(&operator, id, "dead-lettered").await;
        let letters = get(&operator, "/v1/dead-letters?limit=1").await.body;
        letters["data"][0]["letter"].as_str().expect("a name").to_owned()
    }

    /// The event that the request asks for.
    fn sent_before(&self) -> Request {
        let mut request = self.request.clone();
        request.method = reqwest::Method::POST;
        request.path = "/v1/events".to_owned();
        request.query.clear();
        request.set("content-type", "application/json");
        request.set("idempotency-key", &self.event.to_string());
        request.body = pulsestream_e2e::client::event(self.device, 21.5).to_string();
        request
    }
}

impl World {
    /// Waits until so many requests are at work.
    async fn at_work(&self, count: &str) {
        let line = format!("pulsestream_http_requests_in_flight {count}\n");
        wait_for("the requests at work", PATIENCE, async || {
            let figures = self.pipeline.client().get_text("/metrics").await;
            figures.is_ok_and(|text| text.contains(&line))
        })
        .await;
    }
}

/// A gateway that never finishes building.
struct Starting {
    url: String,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Starting {
    async fn start(home: &Home) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shutdown = Shutdown::default();
        let mut config = home.config();
        // Of its own: the pipeline's folder is the pipeline's.
        config.embedded.data_dir = config.embedded.data_dir.join("../starting");
        let (ending, until) = (shutdown.clone(), shutdown.drain.clone());
        let build = async move |_: Context| {
            until.cancelled().await;
            Ok(axum::Router::new().into())
        };
        let runtime = tokio::runtime::Handle::current();
        let task = tokio::task::spawn_blocking(move || {
            let (role, registry) = (pulsestream_gateway::ROLE, Registry::new());
            let config = Arc::new(config);
            let running = service::run(role, listener, config, registry, ending, build);
            runtime.block_on(running).expect("a clean end");
        });
        Self { url, shutdown, task }
    }

    async fn stop(mut self) {
        self.shutdown.drain.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), &mut self.task).await;
        ended.expect("an end in time").expect("no panic");
    }
}

/// A test that fails leaves no thread behind, for which the runtime would wait for ever.
impl Drop for Starting {
    fn drop(&mut self) {
        self.shutdown.drain.cancel();
    }
}
