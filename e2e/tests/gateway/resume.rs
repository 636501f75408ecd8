//! Streams that go on where they ended, on every transport.

use pulsestream_e2e::client::{Dashboard, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_broadcaster};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::{Sse, SseMessage};
use serde_json::{Value, json};
use uuid::Uuid;

on_both!(
    a_cursor_goes_on_over_a_restart_of_everything,
    server_sent_events_break_anywhere_and_repeat_nothing,
    a_poll_loop_gets_every_event_once_and_in_order,
    framed_and_plain_see_the_same_side_by_side,
    a_drain_names_the_place_to_go_on_at,
    a_cursor_shows_a_tenant_its_own_and_what_is_none_is_told,
);

async fn framed(pipeline: &Pipeline, query: &str) -> Dashboard {
    let url = pipeline.stream_url();
    Dashboard::connect(url, &pipeline.key, query).await.expect("connected")
}

async fn post(pipeline: &Pipeline, values: std::ops::Range<i64>) {
    let client = pipeline.client();
    for value in values {
        client.accept(pipeline.devices[0], value as f64).await;
    }
}

fn range(values: std::ops::Range<i64>) -> Vec<i64> {
    values.collect()
}

/// What frames of a framed socket show, and the last cursor.
async fn read(dashboard: &mut Dashboard, count: usize) -> (Vec<i64>, String) {
    let (mut values, mut cursor) = (Vec::new(), String::new());
    while values.len() < count {
        let frame = dashboard.next().await;
        assert_eq!(frame["type"], "events", "{frame}");
        let events = frame["events"].as_array().expect("events");
        values.extend(events.iter().filter_map(|event| event["value"].as_i64()));
        cursor = text(&frame["cursor"]);
    }
    (values, cursor)
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn a_cursor_goes_on_over_a_restart_of_everything(engines: Engines) {
    let mut pipeline = Harness::new(engines).start().await;
    let mut before = framed(&pipeline, "mode=live").await;
    let hello = before.next().await;
    assert_eq!((&hello["type"], &hello["recovered"]), (&json!("hello"), &Value::Null));
    post(&pipeline, 0..5).await;
    let (values, cursor) = read(&mut before, 5).await;
    assert_eq!(values, range(0..5));
    drop(before);
    post(&pipeline, 5..9).await;
    pipeline.stop_services().await;
    pipeline.start_services().await;
    let mut after = framed(&pipeline, &format!("cursor={cursor}")).await;
    let hello = after.next().await;
    assert_eq!(hello["recovered"], true, "{hello}");
    post(&pipeline, 9..12).await;
    let (values, cursor) = read(&mut after, 7).await;
    assert_eq!(values, range(5..12));
    // The newest cursor misses nothing and repeats nothing.
    let mut last = framed(&pipeline, &format!("cursor={cursor}&mode=window&windowMs=20")).await;
    assert_eq!(last.next().await["recovered"], true);
    post(&pipeline, 12..13).await;
    assert_eq!(read(&mut last, 1).await.0, [12]);
    let mut all = framed(&pipeline, "cursor=earliest").await;
    assert_eq!(all.next().await["recovered"], true);
    assert_eq!(read(&mut all, 13).await.0, range(0..13));
    pipeline.stop().await;
}

async fn server_sent_events_break_anywhere_and_repeat_nothing(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let url = pipeline.stream_url();
    let mut sse = Sse::connect(url, &pipeline.key, "", "").await;
    assert_eq!(sse.header("content-type"), "text/event-stream");
    assert_eq!(sse.header("stream-recovered"), "null");
    let hello = sse.next().await.expect("hello");
    assert_eq!((hello.event.as_str(), &hello.data["recovered"]), ("hello", &Value::Null));
    post(&pipeline, 0..6).await;
    let shown = sse.take(6).await;
    assert_eq!(values(&shown), range(0..6));
    assert!(shown.iter().all(|message| message.event.is_empty()));
    drop(sse);
    for (index, message) in shown.iter().enumerate() {
        let mut again = Sse::connect(url, &pipeline.key, "cursor=ignored", &message.id).await;
        assert_eq!(again.header("stream-recovered"), "true");
        assert_eq!(again.next().await.expect("hello").event, "hello");
        let rest = again.take(5 - index).await;
        assert_eq!(values(&rest), range(index as i64 + 1..6));
    }
    // A browser that came no further than hello has a place too.
    let mut again = Sse::connect(url, &pipeline.key, "mode=window", &hello.id).await;
    assert_eq!(again.next().await.expect("hello").data["recovered"], true);
    assert_eq!(values(&again.take(6).await), range(0..6));
    pipeline.stop().await;
}

fn values(messages: &[SseMessage]) -> Vec<i64> {
    messages.iter().filter_map(|message| message.data["value"].as_i64()).collect()
}

async fn poll(pipeline: &Pipeline, key: &str, query: &str) -> Value {
    let client = pipeline.client().at(pipeline.stream_url()).with_key(key);
    let answer = client.send(|http, url| http.get(format!("{url}/v1/stream/poll?{query}"))).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

async fn a_poll_loop_gets_every_event_once_and_in_order(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let first = poll(&pipeline, &pipeline.key, "wait=30").await;
    assert_eq!((&first["recovered"], &first["events"]), (&Value::Null, &json!([])));
    let mut cursor = text(&first["cursor"]);
    // Nothing yet, and it is waited for.
    let waits = format!("cursor={cursor}&wait=20&limit=3");
    let (early, ()) = tokio::join!(poll(&pipeline, &pipeline.key, &waits), post(&pipeline, 0..11));
    let mut shown = Vec::new();
    let mut take = |answer: &Value| {
        assert_eq!(answer["recovered"], true, "{answer}");
        let events = answer["events"].as_array().expect("events");
        assert!(events.len() <= 3);
        shown.extend(events.iter().filter_map(|event| event["value"].as_i64()));
        shown.len()
    };
    assert!(take(&early) > 0);
    cursor = text(&early["cursor"]);
    loop {
        let query = format!("cursor={cursor}&wait=20&limit=3");
        let answer = poll(&pipeline, &pipeline.key, &query).await;
        cursor = text(&answer["cursor"]);
        if take(&answer) >= 11 {
            break;
        }
    }
    assert_eq!(shown, range(0..11));
    // What is asked for alone moves the cursor over the rest.
    let other = format!("deviceId={}&cursor=earliest", pipeline.devices[1]);
    let answer = poll(&pipeline, &pipeline.key, &other).await;
    assert_eq!(answer["events"], json!([]));
    let after =
        poll(&pipeline, &pipeline.key, &format!("cursor={}", text(&answer["cursor"]))).await;
    assert_eq!(after["events"], json!([]));
    pipeline.stop().await;
}

async fn framed_and_plain_see_the_same_side_by_side(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let mut plain = framed(&pipeline, "").await;
    let mut main = framed(&pipeline, "mode=live").await;
    assert_eq!(main.next().await["type"], "hello");
    let subscribe = json!({
        "type": "subscribe", "id": 1, "sub": "second", "deviceId": pipeline.devices[1],
        "cursor": "earliest", "mode": "window", "windowMs": 10,
    });
    main.say(&subscribe.to_string()).await;
    let ok = main.next().await;
    assert_eq!((&ok["type"], &ok["id"], &ok["recovered"]), (&json!("ok"), &json!(1), &json!(true)));
    for value in 0..6_usize {
        pipeline.client().accept(pipeline.devices[value % 2], value as f64).await;
    }
    let mut shown = Vec::new();
    for _ in 0..6 {
        shown.push(plain.next().await);
    }
    let (mut of_main, mut of_second) = (Vec::new(), Vec::new());
    while of_main.len() < 6 || of_second.len() < 3 {
        let frame = main.next().await;
        let events = frame["events"].as_array().expect("events").clone();
        let list = if frame["sub"] == "main" { &mut of_main } else { &mut of_second };
        list.extend(events);
    }
    let of = |events: &[Value], device: usize| {
        let device = json!(pipeline.devices[device]);
        events.iter().filter(|event| event["deviceId"] == device).cloned().collect::<Vec<_>>()
    };
    assert_eq!((of(&of_main, 0), of(&of_main, 1)), (of(&shown, 0), of(&shown, 1)));
    assert_eq!(of_second, of(&shown, 1));
    main.say(r#"{"type":"unsubscribe","id":"u","sub":"second"}"#).await;
    assert_eq!(main.next().await, json!({"type": "ok", "id": "u"}));
    main.say(r#"{"type":"unsubscribe","id":2,"sub":"second"}"#).await;
    assert_eq!(main.next().await["code"], "unknown_subscription");
    main.say(r#"{"type":"ping"}"#).await;
    assert_eq!(main.next().await, json!({"type": "pong"}));
    main.say("hello").await;
    assert_eq!(main.close_code().await, 4400);
    // What a plain socket says is ignored, as ever.
    plain.say("hello").await;
    pipeline.client().accept(pipeline.devices[0], 9.0).await;
    assert_eq!(plain.next().await["value"], 9);
    pipeline.stop().await;
}

async fn a_drain_names_the_place_to_go_on_at(engines: Engines) {
    let mut pipeline = Harness::new(engines).start().await;
    let mut socket = framed(&pipeline, "mode=window&windowMs=1000").await;
    assert_eq!(socket.next().await["type"], "hello");
    let mut sse = Sse::connect(pipeline.stream_url(), &pipeline.key, "", "").await;
    sse.take(1).await;
    post(&pipeline, 0..3).await;
    assert_eq!(values(&sse.take(3).await), range(0..3));
    let reads = async { (socket.read_to_the_end().await, sse.next().await, sse.next().await) };
    let (((frames, code), goaway, end), ()) = tokio::join!(reads, pipeline.stop_services());
    assert_eq!((code, end), (1012, None));
    let last = frames.last().expect("goaway");
    assert_eq!((&last["type"], &last["cursor"]), (&json!("goaway"), &last["cursors"]["main"]));
    assert!(last["reconnectAfterMs"].as_u64().is_some_and(|ms| ms <= 5_000), "{last}");
    let goaway = goaway.expect("goaway");
    assert_eq!((goaway.event.as_str(), &goaway.data["code"]), ("goaway", &json!(1012)));
    let seen: usize =
        frames.iter().filter_map(|frame| frame["events"].as_array()).map(Vec::len).sum();
    pipeline.start_services().await;
    post(&pipeline, 3..5).await;
    let mut again = framed(&pipeline, &format!("cursor={}", text(&last["cursor"]))).await;
    assert_eq!(again.next().await["recovered"], true);
    let (rest, _) = read(&mut again, 5 - seen).await;
    assert_eq!(rest, range(i64::try_from(seen).expect("few")..5));
    let mut again = Sse::connect(pipeline.stream_url(), &pipeline.key, "", &goaway.id).await;
    again.take(1).await;
    assert_eq!(values(&again.take(2).await), range(3..5));
    pipeline.stop().await;
}

async fn a_cursor_shows_a_tenant_its_own_and_what_is_none_is_told(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let other_key = pipeline.home.make_key("other").await;
    let mine = poll(&pipeline, &pipeline.key, "").await;
    post(&pipeline, 0..2).await;
    let other = pipeline.client().with_key(&other_key);
    other.accept(pipeline.devices[0], 7.0).await;
    let query = format!("wait=20&cursor={}", text(&mine["cursor"]));
    let answer = poll(&pipeline, &other_key, &query).await;
    let shown: Vec<_> = answer["events"].as_array().expect("events").iter().collect();
    assert!(shown.iter().all(|event| event["value"] == 7) && shown.len() == 1, "{answer}");
    for (cursor, reason) in [("nonsense", "malformed"), ("AgECA5fq9YUPmJHr", "malformed")] {
        let answer = poll(&pipeline, &pipeline.key, &format!("cursor={cursor}")).await;
        assert_eq!((&answer["recovered"], &answer["reason"]), (&json!(false), &json!(reason)));
        let mut socket = framed(&pipeline, &format!("cursor={cursor}")).await;
        assert_eq!(socket.next().await["reason"], reason);
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_log_is_told_so() {
    let (one, another) = tokio::join!(
        Harness::new(Engines::Embedded).start(),
        Harness::new(Engines::Embedded).start()
    );
    let cursor = text(&poll(&one, &one.key, "").await["cursor"]);
    let answer = poll(&another, &another.key, &format!("cursor={cursor}&wait=30")).await;
    assert_eq!((&answer["recovered"], &answer["reason"]), (&json!(false), &json!("other_epoch")));
    one.stop().await;
    another.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dashboard_moves_between_broadcasters_without_a_gap() {
    let pipeline = Harness::new(Engines::Servers).start().await;
    let second = start_broadcaster(&pipeline.home).await;
    let urls = [pipeline.stream_url(), second.url.as_str()];
    let mut cursor = text(&poll(&pipeline, &pipeline.key, "").await["cursor"]);
    for turn in 0..6_usize {
        let value = i64::try_from(turn).expect("few") * 2;
        post(&pipeline, value..value + 2).await;
        let query = format!("mode=live&cursor={cursor}");
        let connected = Dashboard::connect(urls[turn % 2], &pipeline.key, &query).await;
        let mut dashboard = connected.expect("connected");
        assert_eq!(dashboard.next().await["recovered"], true);
        let (values, after) = read(&mut dashboard, 2).await;
        assert_eq!(values, range(value..value + 2));
        cursor = after;
    }
    second.stop().await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_framed_socket_that_does_not_read_is_told_of_a_gap_and_goes_on() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__QUEUE_BYTES", "65536")
        .set("PULSESTREAM__LIVE__RING_BYTES", "1048576")
        .set("PULSESTREAM__LIMITS__DEVICE_RATE", "0")
        .start()
        .await;
    let mut slow = framed(&pipeline, "mode=live").await;
    assert_eq!(slow.next().await["type"], "hello");
    let mut sent = 0_i64;
    // More than the kernel takes in for a socket nobody reads, and the ring besides.
    for _ in 0..8 {
        let events: Vec<_> = (sent..sent + 400)
            .map(|value| {
                let mut body = event(pipeline.devices[0], value as f64);
                body["id"] = json!(Uuid::new_v4());
                body["metadata"] = json!({"padding": "x".repeat(9_000)});
                body
            })
            .collect();
        sent += 400;
        let body = json!({"events": events}).to_string();
        let client = pipeline.client();
        let posted = client.send(|http, url| {
            let request = http.post(format!("{url}/v1/events/batch"));
            let request = request.header("content-type", "application/json").body(body);
            request.header("idempotency-key", Uuid::new_v4().to_string())
        });
        let answer = posted.await.expect("an answer");
        assert_eq!(answer.status, 202, "{:?}", answer.body["results"][0]);
    }
    post(&pipeline, -1..0).await;
    let (mut next, mut gaps) = (Some(0), 0);
    'frames: loop {
        let frame = slow.next().await;
        if frame["type"] == "gap" {
            assert_eq!((&frame["sub"], &frame["reason"]), (&json!("main"), &json!("slow")));
            (next, gaps) = (None, gaps + 1);
            // The last event may lie in the gap; one that is sent now does not.
            post(&pipeline, -1..0).await;
            continue;
        }
        for event in frame["events"].as_array().expect("events") {
            let value = event["value"].as_i64().expect("a number");
            if value == -1 {
                break 'frames;
            }
            assert!(next.is_none_or(|next| next == value), "{value} and no gap before it");
            next = Some(value + 1);
        }
    }
    assert!(gaps > 0, "never too slow");
    pipeline.stop().await;
}
