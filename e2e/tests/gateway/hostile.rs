//! Whole requests, changed at random: each is answered by a status that says whose fault it is, or its
//! connection is closed; nothing is answered 500, and whoever comes after is served.
//!
//! What reads bodies, headers and cursors is tried harder, by itself, in the tests of the gateway.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use pulsestream_e2e::client::event;
use pulsestream_e2e::harness::{Engines, Harness};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::raw::head;

const REQUESTS: usize = 1_500;
const AT_ONCE: usize = 20;
/// What a client may be told; the last is the one fault that is ours.
const STATUSES: [u16; 17] =
    [200, 202, 207, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 422, 429, 431, 503];
const TOKENS: [&str; 24] = [
    "",
    "\0",
    "\r\n",
    "\r\n\r\n",
    "\n",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "\"",
    "%",
    "%00",
    "/",
    "..",
    "?",
    "=",
    "chunked",
    "100-continue",
    "HTTP/1.0",
    "99999999999999999999",
    "-1",
    "\u{fe}",
    "content-length: 5\r\n",
];

fn seeds(key: &str, device: Uuid) -> Vec<String> {
    let body = event(device, 1.0).to_string();
    let batch = format!("[{body}]");
    let post = |body: &str| head(key, Uuid::new_v4(), body.len());
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: test\r\nx-api-key: {key}\r\n{more}\r\n")
    };
    vec![
        format!("{}\r\n{body}", post(&body)),
        format!("{}expect: 100-continue\r\n\r\n{body}", post(&body)),
        format!("{}\r\n{batch}", post(&batch).replace("events", "events/batch")),
        format!(
            "{}\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            post(&body)
                .replace(&format!("content-length: {}", body.len()), "transfer-encoding: chunked"),
            body.len()
        ),
        get("/v1/events?limit=2&order=asc&cursor=AcfVjmLm3n8AAAGh", ""),
        get(&format!("/v1/events/{}", Uuid::new_v4()), "x-request-id: mine\r\n"),
        get("/v1/devices", "authorization: Bearer nobody\r\norigin: https://a.example\r\n"),
        get(
            &format!("/v1/stream?deviceId={device}"),
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        get("/readyz", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"),
    ]
}

fn changed(rng: &mut StdRng, seeds: &[String]) -> Vec<u8> {
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone().into_bytes();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        let end = bytes.len().min(at + rng.random_range(0..12));
        match rng.random_range(0..4) {
            0 => drop(bytes.splice(at..end, TOKENS[rng.random_range(0..TOKENS.len())].bytes())),
            1 => drop(bytes.drain(at..end)),
            2 => {
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << rng.random_range(0..8))
            }
            _ => {
                let slice = bytes[at..end].repeat(rng.random_range(1..2_000));
                bytes.splice(at..at, slice);
            }
        }
    }
    bytes
}

/// The statuses of what is answered until the server closes; the client says that it is done.
async fn statuses(address: &str, request: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let mut bytes = Vec::new();
    let talk = async {
        // The server may have closed before it has heard everything.
        drop(stream.write_all(request).await);
        drop(stream.shutdown().await);
        drop(stream.read_to_end(&mut bytes).await);
    };
    let shown = || String::from_utf8_lossy(request).chars().take(600).collect::<String>();
    timeout(Duration::from_secs(15), talk).await.unwrap_or_else(|_| panic!("hangs: {:?}", shown()));
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.split("HTTP/1.").skip(1).filter_map(|rest| rest.get(2..5)?.parse().ok());
    let statuses: Vec<_> = lines.filter(|status| !matches!(status, 100 | 101)).collect();
    for status in &statuses {
        assert!(STATUSES.contains(status), "{status} to {:?}", shown());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_answered_or_closed_and_harm_nobody() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__BODY_STALL_TIMEOUT", "300ms")
        .set("PULSESTREAM__SERVER__HEADER_TIMEOUT", "1s")
        .start()
        .await;
    let address = pipeline.gateway_url().trim_start_matches("http://").to_owned();
    let seeds = seeds(&pipeline.key, pipeline.devices[0]);
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut told = BTreeMap::<u16, usize>::new();
    for _ in 0..REQUESTS / AT_ONCE {
        let requests: Vec<_> = (0..AT_ONCE).map(|_| changed(&mut rng, &seeds)).collect();
        let answers = join_all(requests.iter().map(|request| statuses(&address, request))).await;
        for status in answers.into_iter().flatten() {
            *told.entry(status).or_default() += 1;
        }
    }
    eprintln!("{told:?}");
    assert!(told.contains_key(&202) && told.contains_key(&400), "{told:?}");
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    pipeline.stop().await;
}
