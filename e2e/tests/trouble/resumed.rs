//! Whoever shows live events is killed again and again under load; dashboards of every transport go on with
//! their cursors, at another broadcaster or the same, and each sees the log: everything, once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, event};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_e2e::sse::Sse;
use pulsestream_shared::testing::wait_for;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::Site;

on_both!(dashboards_that_resume_miss_and_repeat_nothing_however_broadcasters_die);

const VIEWERS: usize = 9;
const ROUNDS: usize = 4;
/// Events accepted between two kills.
const BETWEEN: i64 = 60;

async fn dashboards_that_resume_miss_and_repeat_nothing_however_broadcasters_die(engines: Engines) {
    let site = Site::new(engines).await;
    let mut processes = Vec::new();
    let roles: &[&str] = match engines {
        Engines::Embedded => &["up"],
        Engines::Servers => &["gateway", "broadcaster", "broadcaster"],
    };
    for role in roles {
        processes.push(Process::start(role, &site.home.variables).await);
    }
    for process in &processes {
        process.ready().await;
    }
    let first_killed = usize::from(engines == Engines::Servers);
    let urls: Vec<_> = processes.iter().skip(first_killed).map(|p| p.url.clone()).collect();
    let cursor = begin(&urls[0], &site.key).await;
    let (goal, watched) = watch::channel(i64::MAX);
    let mut viewers = JoinSet::new();
    for number in 0..VIEWERS {
        let (urls, key, cursor, goal) =
            (urls.clone(), site.key.clone(), cursor.clone(), watched.clone());
        viewers.spawn(Viewer { urls, key, cursor, goal, seen: Vec::new() }.watch(number));
    }
    let (end, accepted) = (CancellationToken::new(), Arc::new(AtomicI64::new(0)));
    let client = Client::new(&processes[0].url, &site.key);
    let posting = tokio::spawn(post_until(end.clone(), client, accepted.clone()));
    for round in 0..ROUNDS {
        more_accepted(&accepted).await;
        let victim = first_killed + round % urls.len();
        processes[victim].kill().await;
        if engines == Engines::Servers {
            more_accepted(&accepted).await;
        }
        processes[victim].restart().await;
        processes[victim].ready().await;
    }
    more_accepted(&accepted).await;
    end.cancel();
    posting.await.expect("posted");
    let count = accepted.load(Ordering::SeqCst);
    goal.send_replace(count);
    let expected: Vec<_> = (0..count).collect();
    let all = tokio::time::timeout(Duration::from_secs(60), viewers.join_all()).await;
    for seen in all.expect("every dashboard to see everything") {
        assert_eq!(seen, expected);
    }
    drop(processes);
    site.remove().await;
}

async fn more_accepted(accepted: &AtomicI64) {
    let wanted = accepted.load(Ordering::SeqCst) + BETWEEN;
    wait_for("more events", Duration::from_secs(60), async || {
        accepted.load(Ordering::SeqCst) >= wanted
    })
    .await;
}

/// Posts 0, 1, 2, … of one device, each until it is accepted.
async fn post_until(end: CancellationToken, client: Client, accepted: Arc<AtomicI64>) {
    let device = Uuid::new_v4();
    while !end.is_cancelled() {
        let (id, body) = (Uuid::new_v4(), event(device, accepted.load(Ordering::SeqCst) as f64));
        while !client.post(id, &body).await.is_ok_and(|answer| answer.status == 202) {
            sleep(Duration::from_millis(20)).await; // as a device does
        }
        accepted.fetch_add(1, Ordering::SeqCst);
    }
}

async fn poll(url: &str, key: &str, query: &str) -> Option<Value> {
    let client = Client::new(url, key);
    let answer = client.send(|http, url| http.get(format!("{url}/v1/stream/poll?{query}"))).await;
    Some(answer.ok().filter(|answer| answer.status == 200)?.body)
}

async fn begin(url: &str, key: &str) -> String {
    let answer = poll(url, key, "").await.expect("an answer");
    answer["cursor"].as_str().expect("a cursor").to_owned()
}

/// A dashboard that comes back with its cursor, each time to the next broadcaster.
struct Viewer {
    urls: Vec<String>,
    key: String,
    cursor: String,
    goal: watch::Receiver<i64>,
    seen: Vec<i64>,
}

impl Viewer {
    async fn watch(mut self, number: usize) -> Vec<i64> {
        for turn in number.. {
            if self.has_all() {
                break;
            }
            let url = self.urls[turn % self.urls.len()].clone();
            let mut goal = self.goal.clone();
            // Once everything was accepted the dashboard may have it all, and nothing more comes to wake it.
            let came = tokio::select! {
                came = async {
                    match number % 3 {
                        0 => self.frames(&url).await,
                        1 => self.messages(&url).await,
                        _ => self.page(&url).await,
                    }
                } => came,
                _ = goal.wait_for(|goal| *goal < i64::MAX), if *self.goal.borrow() == i64::MAX => None,
            };
            if came.is_none() {
                sleep(Duration::from_millis(20)).await; // it is down: try the next
            }
        }
        self.seen
    }

    fn has_all(&self) -> bool {
        i64::try_from(self.seen.len()).expect("few") >= *self.goal.borrow()
    }

    async fn frames(&mut self, url: &str) -> Option<()> {
        let query = format!("mode=window&windowMs=20&cursor={}", self.cursor);
        let mut dashboard = Dashboard::connect(url, &self.key, &query).await.ok()?;
        while !self.has_all() {
            let frame = dashboard.next_frame().await?;
            match frame["type"].as_str() {
                Some("hello") => assert_eq!(frame["recovered"], true, "{frame}"),
                Some("events") => {
                    let events = frame["events"].as_array().expect("events");
                    self.seen.extend(events.iter().filter_map(|event| event["value"].as_i64()));
                    self.cursor = frame["cursor"].as_str().expect("a cursor").to_owned();
                }
                _ => panic!("{frame}"),
            }
        }
        Some(())
    }

    async fn messages(&mut self, url: &str) -> Option<()> {
        let mut sse = Sse::open(url, &self.key, "", &self.cursor).await.ok()?;
        while !self.has_all() {
            let message = sse.next().await?;
            match message.event.as_str() {
                "hello" => assert_eq!(message.data["recovered"], true, "{message:?}"),
                "" => {
                    self.seen.extend(message.data["value"].as_i64());
                    self.cursor = message.id;
                }
                _ => panic!("{message:?}"),
            }
        }
        Some(())
    }

    async fn page(&mut self, url: &str) -> Option<()> {
        let query = format!("wait=5&limit=7&cursor={}", self.cursor);
        let page = poll(url, &self.key, &query).await?;
        assert_eq!(page["recovered"], true, "{page}");
        let events = page["events"].as_array().expect("events");
        self.seen.extend(events.iter().filter_map(|event| event["value"].as_i64()));
        self.cursor = page["cursor"].as_str().expect("a cursor").to_owned();
        Some(())
    }
}
