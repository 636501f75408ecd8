//! Dead letters over HTTP: an admin reads those of its client, with their bytes, and nobody else's.

use std::collections::BTreeSet;

use bytes::Bytes;
use pulsestream_e2e::client::{Client, PATIENCE};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::log::{Headers, NewRecord};
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::assert_problem;
use crate::raw::said_to_get;
use crate::read::{append, doomed, get, read};

on_both!(
    an_admin_reads_the_dead_letters_of_its_client_in_pages_and_by_filters,
    a_dead_letter_is_read_with_its_bytes_whatever_they_are,
    dead_letters_of_another_client_or_of_nobody_are_not_there,
);

const LETTERS: &str = "/v1/dead-letters";

/// A pipeline, and a client with a key of its first tenant that may see dead letters.
struct Desk {
    pipeline: Pipeline,
    admin: Client,
}

impl Desk {
    async fn new(engines: Engines, faults: &Faults) -> Self {
        let pipeline = Harness::new(engines).devices(2).faults(faults).start().await;
        let admin = pipeline.home.make_key_with("tenant", &[Scope::Admin], None).await;
        let admin = pipeline.client().with_key(&admin);
        Self { pipeline, admin }
    }

    /// The record of an event that is too old, of the first device.
    async fn doomed(&self) -> NewRecord {
        doomed(&self.pipeline, &self.pipeline.key, Uuid::new_v4()).await
    }

    async fn append(&self, record: NewRecord) {
        append(&self.pipeline, record).await;
    }

    /// All its letters, when there are so many; newest first.
    async fn letters(&self, count: usize) -> Vec<Value> {
        wait_for("the letters", PATIENCE, async || {
            rows(&read(&self.admin, LETTERS).await).len() == count
        })
        .await;
        rows(&read(&self.admin, LETTERS).await)
    }

    /// With its record.
    async fn whole(&self, letter: &Value) -> Value {
        read(&self.admin, path_of(letter)).await["data"].clone()
    }
}

fn rows(page: &Value) -> Vec<Value> {
    page["data"].as_array().expect("a list").clone()
}

fn path_of(letter: &Value) -> String {
    format!("{LETTERS}/{}", letter["letter"].as_str().expect("a name"))
}

async fn an_admin_reads_the_dead_letters_of_its_client_in_pages_and_by_filters(engines: Engines) {
    let desk = Desk::new(engines, &Faults::default()).await;
    let (device, begun_ms) = (desk.pipeline.devices[0], clock::unix_ms());
    for count in 1..=4 {
        desk.append(desk.doomed().await).await;
        desk.letters(count).await;
    }
    let bad = NewRecord { key: Some(Bytes::from_static(b"odd")), ..desk.doomed().await };
    desk.append(bad).await;
    let all = desk.letters(5).await;

    let newest = &all[0];
    assert_eq!((&newest["reason"], &newest["deviceId"]), (&json!("malformed"), &Value::Null));
    assert!(newest["error"].as_str().expect("a sentence").contains("key"), "{newest}");
    let oldest = &all[4];
    assert_eq!((&oldest["reason"], &oldest["deviceId"]), (&json!("out_of_range"), &json!(device)));
    assert_eq!((&oldest["state"], &oldest["deaths"]), (&json!("dead"), &json!(1)));
    let died_ms = oldest["diedAt"].as_i64().expect("a time");
    assert!((begun_ms..=clock::unix_ms()).contains(&died_ms), "{oldest}");

    let walk = async |query: &str| {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = read(&desk.admin, format!("{LETTERS}?limit=2{query}{cursor}")).await;
            seen.extend(rows(&page));
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return seen,
            }
        }
    };
    assert_eq!(walk("").await, all);
    assert_eq!(walk("&reason=malformed").await, all[..1]);
    assert_eq!(walk(&format!("&deviceId={device}")).await, all[1..]);
    assert_eq!(walk(&format!("&deviceId={}", desk.pipeline.devices[1])).await, [] as [Value; 0]);
    // `to` is exclusive, `from` is not.
    let at_ms = all[2]["diedAt"].as_i64().expect("a time");
    let (since, before): (Vec<_>, Vec<_>) =
        all.iter().cloned().partition(|letter| letter["diedAt"].as_i64() >= Some(at_ms));
    assert_eq!(walk(&format!("&from={at_ms}")).await, since);
    assert_eq!(walk(&format!("&to={at_ms}")).await, before);
    wrong_questions_are_named(&desk).await;
    desk.pipeline.stop().await;
}

async fn wrong_questions_are_named(desk: &Desk) {
    let page = read(&desk.admin, format!("{LETTERS}?limit=1")).await;
    let cursor = page["nextCursor"].as_str().expect("more");
    for (query, fields) in [
        ("?reason=odd&deviceId=7&from=a&to=-1&limit=1001&order=asc".to_owned(), 6),
        ("?from=5&to=5".to_owned(), 1),
        (format!("?reason=malformed&cursor={cursor}"), 1),
        ("/2-7".to_owned(), 1),
        (format!("/2-7@{}?limit=1", Uuid::nil().simple()), 1),
    ] {
        let answer = get(&desk.admin, format!("{LETTERS}{query}")).await;
        assert_problem(&answer, 400, "bad_request");
        assert_eq!(answer.body["errors"].as_array().map(Vec::len), Some(fields), "{answer:?}");
    }
    let odd = get(&desk.admin, format!("{LETTERS}?reason=odd")).await.body["errors"].to_string();
    assert!(odd.contains("out_of_range"), "it names those there are: {odd}");
}

async fn a_dead_letter_is_read_with_its_bytes_whatever_they_are(engines: Engines) {
    let desk = Desk::new(engines, &Faults::default()).await;
    let event = desk.doomed().await;
    let hostile = "<script>alert(1)</script>\u{202e}\u{0}";
    let values = [
        event.value.to_vec(),
        hostile.as_bytes().to_vec(),
        vec![0xff, 0x00, 0xfe],
        "é".repeat(60_000).into_bytes(),
        Vec::new(),
    ];
    for value in values {
        desk.append(NewRecord { value: value.into(), ..event.clone() }).await;
    }
    let (mut payloads, mut missing) = (Vec::new(), BTreeSet::new());
    for letter in desk.letters(5).await {
        let whole = desk.whole(&letter).await;
        for (name, value) in letter.as_object().expect("an object") {
            assert_eq!(&whole[name], value, "as in the list");
        }
        missing.insert(whole["missing"].to_string());
        payloads.push(whole["payload"].clone());
    }
    assert_eq!(missing, ["null".to_owned()].into());
    let told = |size: usize, truncated: bool, text: Option<&str>, base64: Option<&str>| json!({"size": size, "truncated": truncated, "text": text, "base64": base64});
    let sent = String::from_utf8(event.value.to_vec()).expect("JSON");
    let cut = "é".repeat(32_768);
    for expected in [
        told(sent.len(), false, Some(&sent), None),
        told(hostile.len(), false, Some(hostile), None),
        told(3, false, None, Some("/wD+")),
        told(120_000, true, Some(&cut), None),
        told(0, false, Some(""), None),
    ] {
        assert!(payloads.contains(&expected), "{expected}");
    }
    desk.pipeline.stop().await;
}

async fn dead_letters_of_another_client_or_of_nobody_are_not_there(engines: Engines) {
    let desk = Desk::new(engines, &Faults::default()).await;
    let another = desk.pipeline.home.make_key_with("another", &[Scope::Admin], None).await;
    let nobodys = NewRecord { headers: Headers::default(), ..desk.doomed().await };
    desk.append(nobodys).await;
    let theirs = doomed(&desk.pipeline, &another, Uuid::new_v4()).await;
    desk.append(theirs).await;
    desk.append(desk.doomed().await).await;
    let mine = desk.letters(1).await;
    let client = desk.admin.with_key(&another);
    wait_for("theirs", PATIENCE, async || rows(&read(&client, LETTERS).await).len() == 1).await;
    let theirs = rows(&read(&client, LETTERS).await);
    assert_ne!(theirs[0]["letter"], mine[0]["letter"]);
    wait_for("nobody's to be buried", PATIENCE, async || {
        let buried = desk.pipeline.engine().letters.count(&Default::default()).await;
        buried.expect("a count").iter().map(|(_, count)| count).sum::<u64>() == 3
    })
    .await;
    assert_eq!(
        (desk.letters(1).await, rows(&read(&client, LETTERS).await)),
        (mine.clone(), theirs)
    );

    // Not yours, and not there, are the same bytes.
    let nowhere = format!("{LETTERS}/0-999999@{}", Uuid::nil().simple());
    let said = async |key: &str, path: &str| {
        said_to_get(desk.pipeline.gateway_url(), path, key, "connection: close\r\n").await
    };
    let hidden = said(&another, &path_of(&mine[0])).await;
    assert!(hidden.starts_with("HTTP/1.1 404 "), "{hidden}");
    assert_eq!(hidden, said(&another, &nowhere).await);
    let page = read(&desk.admin, format!("{LETTERS}?limit=1")).await;
    assert_eq!(page["nextCursor"], Value::Null);
    desk.pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_need_a_key_with_the_scope_admin() {
    let desk = Desk::new(Engines::Embedded, &Faults::default()).await;
    desk.append(desk.doomed().await).await;
    let one = path_of(&desk.letters(1).await[0]);
    for path in [LETTERS, &one, "/v1/dead-letters?limit=0", "/v1/dead-letters/x"] {
        assert_problem(&get(&desk.admin.with_key(""), path).await, 401, "missing_api_key");
        assert_problem(&get(&desk.admin.with_key("nobody"), path).await, 401, "invalid_api_key");
        // The key of every other test reads and writes events.
        let refused = get(&desk.pipeline.client(), path).await;
        assert_problem(&refused, 403, "forbidden");
        assert!(refused.body["detail"].to_string().contains("admin"), "{refused:?}");
    }
    for path in [LETTERS, &one] {
        let put = desk.admin.send(|http, url| http.delete(format!("{url}{path}"))).await;
        let put = put.expect("an answer");
        assert_problem(&put, 405, "method_not_allowed");
        assert_eq!(put.header("allow"), "GET, HEAD");
    }
    desk.pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_knows_of_a_dead_letter_is_told_without_the_log() {
    let faults = Faults::default();
    let desk = Desk::new(Engines::Embedded, &faults).await;
    desk.append(desk.doomed().await).await;
    let letters = desk.letters(1).await;
    for path in [LETTERS.to_owned(), path_of(&letters[0])] {
        faults.next(Method::QueryLetters, 1, Fault::Before);
        assert_problem(&get(&desk.admin, &path).await, 503, "unavailable");
        faults.next(Method::QueryLetters, 1, Fault::After);
        assert_problem(&get(&desk.admin, &path).await, 503, "query_timeout");
    }
    // Others read the log too.
    faults.next(Method::Read, usize::MAX, Fault::Before);
    let whole = desk.whole(&letters[0]).await;
    assert_eq!((&whole["reason"], &whole["payload"]), (&json!("out_of_range"), &Value::Null));
    assert_eq!(whole["missing"], "the log does not answer now");
    faults.clear();
    assert_eq!(desk.whole(&letters[0]).await["missing"], Value::Null);
    desk.pipeline.stop().await;
}
