//! `live` against scripted WebSocket servers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use pulsestream_loadgen::control::Control;
use pulsestream_loadgen::live::{self, Options, Received, Report};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use uuid::Uuid;

const DEVICE: Uuid = Uuid::from_u128(1);

/// The event with this number, made this long ago.
fn event_aged(seq: u64, age_ms: u64) -> Message {
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let id = Uuid::from_u128(u128::from(seq) + 100);
    let (value, timestamp) = (seq, now_ms - age_ms);
    let text = format!(
        r#"{{"id":"{id}","deviceId":"{DEVICE}","eventType":"t1","value":{value},"timestamp":{timestamp}}}"#
    );
    Message::text(text)
}

fn event(seq: u64) -> Message {
    event_aged(seq, 0)
}

/// One connection's script: what is sent, then how it ends.
struct Act {
    frames: Vec<Message>,
    close: Option<u16>,
    /// Without close frame and handshake.
    cut: bool,
}

impl Act {
    fn holding(frames: Vec<Message>) -> Self {
        Self { frames, close: None, cut: false }
    }
}

/// Plays one act per connection, in order of arrival; returns the URL and the request lines with key.
async fn play(acts: Vec<Act>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let playing = tokio::spawn(async move {
        let mut requests = Vec::new();
        for act in acts {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = open(stream, &mut requests).await;
            for frame in act.frames {
                socket.send(frame).await.unwrap();
            }
            if act.cut {
                continue;
            }
            if let Some(code) = act.close {
                let frame = CloseFrame { code: code.into(), reason: "".into() };
                socket.close(Some(frame)).await.unwrap();
            }
            // Until the other side has closed, pongs included.
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Pong(bytes) => requests.push(format!("pong {}", bytes.len())),
                    Message::Close(Some(frame)) => requests.push(format!("closed {}", frame.code)),
                    _ => {}
                }
            }
        }
        requests
    });
    (url, playing)
}

#[expect(clippy::result_large_err, reason = "the handshake callback's type is the library's")]
async fn open(stream: TcpStream, requests: &mut Vec<String>) -> WebSocketStream<TcpStream> {
    let note = |request: &Request, response: Response| {
        let key = request.headers().get("x-api-key").map(|key| key.to_str().unwrap());
        requests.push(format!("{} {}", request.uri(), key.unwrap_or("-")));
        Ok(response)
    };
    tokio_tungstenite::accept_hdr_async(stream, note).await.unwrap()
}

/// Runs until this many frames came and this many connections were closed or are open.
async fn run_until(options: Options, frames: u64) -> Report {
    let control = Arc::new(Control::default());
    let run = tokio::spawn(live::run_controlled(options, Arc::clone(&control)));
    while control.done() < frames && !run.is_finished() {
        tokio::task::yield_now().await;
    }
    control.stop();
    run.await.unwrap().unwrap()
}

fn options(url: &str) -> Options {
    Options { duration: Duration::from_secs(20), ..Options::new(url) }
}

#[tokio::test]
async fn repeats_disorder_and_holes_on_one_connection_are_counted() {
    let frames = [1, 2, 2, 3, 6, 5, 7].map(event).to_vec();
    let (url, playing) = play(vec![Act::holding(frames)]).await;
    let report = run_until(options(&url), 7).await;
    assert_eq!((report.frames, report.events, report.distinct_events), (7, 7, 6));
    assert_eq!((report.repeats.on_socket, report.repeats.on_connection), (1, 1));
    assert_eq!(report.out_of_order, 2, "the second 2, and 5 after 6");
    assert_eq!((report.holes, report.missing), (1, 2), "4 and 5 were jumped over");
    assert_eq!((report.connections, report.open_at_end), (1, 1));
    assert!(report.closes.is_empty(), "our own goodbye is not the server's close");
    playing.await.unwrap();
}

#[tokio::test]
async fn a_socket_reconnects_and_knows_what_it_saw_before() {
    let acts = vec![
        Act { close: Some(1012), ..Act::holding(vec![event(1), event(2)]) },
        Act { cut: true, ..Act::holding(vec![event(3)]) },
        Act::holding(vec![event(3), event(9)]),
    ];
    let (url, playing) = play(acts).await;
    let report = run_until(options(&url), 5).await;
    assert_eq!(report.connections, 3);
    assert_eq!(report.closes.get(&1012), Some(&1));
    assert_eq!(report.closes.get(&1006), Some(&1));
    assert_eq!((report.repeats.on_socket, report.repeats.on_connection), (1, 0));
    assert_eq!(report.out_of_order, 0, "order is judged per connection");
    assert_eq!((report.holes, report.missing), (1, 5), "4 to 8 within the last connection");
    assert_eq!((report.protocol_errors, report.connect_errors), (0, 0));
    assert!(playing.await.unwrap().contains(&"closed 1012".to_owned()), "a close is answered");
}

#[tokio::test]
async fn filters_key_and_record_say_what_was_asked_for_and_what_came() {
    let folder = TempDir::new().unwrap();
    let record = folder.path().join("seen.jsonl");
    let (url, playing) = play(vec![Act::holding(vec![event(1), event(2)])]).await;
    let asked = Options {
        key: Some("ps_test_key".to_owned()),
        devices: vec![DEVICE],
        event_types: vec!["a b".to_owned(), "c".to_owned()],
        record: Some(record.clone()),
        ..options(&url)
    };
    run_until(asked, 2).await;
    let wanted = format!("/v1/stream?deviceId={DEVICE}&eventType=a+b&eventType=c ps_test_key");
    assert_eq!(playing.await.unwrap(), [wanted]);
    let text = std::fs::read_to_string(record).unwrap();
    let lines: Vec<Received> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seqs: Vec<_> =
        lines.iter().map(|line| (line.socket, line.connection, line.device, line.seq)).collect();
    assert_eq!(seqs, [(0, 1, DEVICE, 1), (0, 1, DEVICE, 2)]);
}

#[tokio::test]
async fn pings_are_answered_and_foreign_frames_counted() {
    let frames =
        vec![Message::Ping("abc".into()), Message::text("{}"), event_aged(1, 5_000), event(2)];
    let (url, playing) = play(vec![Act::holding(frames)]).await;
    let report = run_until(options(&url), 2).await;
    assert_eq!((report.pings, report.frames, report.undecodable), (1, 3, 1));
    assert_eq!(report.undecodable_example.as_deref(), Some("{}"));
    assert!((5_000.0..6_000.0).contains(&report.latency_ms.max), "{:?}", report.latency_ms);
    assert!(playing.await.unwrap().contains(&"pong 3".to_owned()));
}

#[tokio::test]
async fn the_run_says_when_it_is_ready_and_ends_when_its_file_appears() {
    let folder = TempDir::new().unwrap();
    let (ready, until) = (folder.path().join("ready"), folder.path().join("until"));
    let (url, playing) = play(vec![Act::holding(vec![])]).await;
    let asked = Options {
        ready_file: Some(ready.clone()),
        until_file: Some(until.clone()),
        ..options(&url)
    };
    let run = tokio::spawn(live::run(asked));
    while !ready.exists() {
        tokio::task::yield_now().await;
    }
    std::fs::write(until, "").unwrap();
    let report = run.await.unwrap().unwrap();
    assert!(report.duration_s < 10.0 && report.ready_s.is_some());
    playing.await.unwrap();
}

#[tokio::test]
async fn without_reconnecting_a_refused_socket_ends_the_run() {
    // Accepts TCP and says something that is not a WebSocket handshake.
    let app = axum::Router::new()
        .route("/v1/stream", axum::routing::get(|| async { axum::http::StatusCode::UNAUTHORIZED }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let report = live::run(Options { reconnect: false, ..options(&url) }).await.unwrap();
    assert_eq!((report.connections, report.refused.get(&401)), (0, Some(&1)));
    assert!(report.duration_s < 10.0);
}

#[tokio::test]
async fn a_thousand_sockets_open_and_each_counts_for_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = open(stream, &mut Vec::new()).await;
                socket.send(event(1)).await.unwrap();
                while let Some(Ok(_)) = socket.next().await {}
            });
        }
    });
    let report = run_until(Options { sockets: 1_000, ..options(&url) }, 1_000).await;
    assert_eq!((report.connections, report.open_at_end), (1_000, 1_000));
    assert_eq!((report.events, report.distinct_events), (1_000, 1));
    assert_eq!(report.repeats.on_socket, 0, "one event on many sockets is no repeat");
    assert!(report.ready_s.is_some() && report.connect_errors == 0);
}
