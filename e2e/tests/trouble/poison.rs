//! Records that are no events, among records that are: the good ones are stored, each of the others is
//! one dead letter, with its bytes and the reason.

use bytes::Bytes;
use pulsestream_e2e::client::PATIENCE;
use pulsestream_e2e::harness::{Engines, Running};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::codec::{Accepted, encode};
use pulsestream_shared::event::{ClientId, DeviceId, Event, EventId};
use pulsestream_shared::log::{Headers, NewRecord, Record, Topic};
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

use crate::support::{Log, Site, counter};

on_both!(
    every_poison_is_one_dead_letter_and_every_good_event_is_stored,
    another_body_under_a_stored_id_is_a_conflict_and_the_first_stays,
);

/// A record, and the reason for which it cannot be stored.
pub(crate) type Poison = (NewRecord, &'static str);

async fn every_poison_is_one_dead_letter_and_every_good_event_is_stored(engines: Engines) {
    let site = Site::new(engines).await;
    let consumer = site.consumer().await;
    let log = Log::attach(&site.home).await;
    let partitions = log.identity().await.partitions;
    let client = site.client_number().await;
    let device = Uuid::new_v4();

    let mut good = Vec::new();
    let mut records = Vec::new();
    let poisons = poisons(device, client, partitions);
    for (poison, _) in &poisons {
        let event = accepted(device, client);
        good.push(event.event.id);
        records.push(encode(&event, partitions));
        records.push(poison.clone());
    }
    for result in log.port().append(Topic::Raw, records).await {
        result.expect("appended");
    }
    site.stored_exactly(&good, &log).await;

    let copies = log.records(Topic::Dlq).await;
    let buried = site.tables.buried_records().await.expect("dead letters");
    assert_eq!((copies.len(), buried.len()), (poisons.len(), poisons.len()));
    for (poison, reason) in &poisons {
        let mut copies = copies.iter().filter(|copy| is_copy(copy, poison));
        let copy = copies.next().unwrap_or_else(|| panic!("no copy of {poison:?}"));
        assert!(copies.next().is_none(), "two copies of {poison:?}");
        tells_its_story(copy, reason);
        let (partition, offset) = (text(copy, "dlq.partition"), text(copy, "dlq.offset"));
        let row = buried
            .iter()
            .find(|row| row.partition.to_string() == partition && row.offset.to_string() == offset);
        assert_eq!(row.expect("a row").reason, *reason);
    }
    is_conserved(&consumer, 2 * poisons.len(), poisons.len()).await;
    log.close().await;
    consumer.stop().await;
    site.remove().await;
}

async fn another_body_under_a_stored_id_is_a_conflict_and_the_first_stays(engines: Engines) {
    let site = Site::new(engines).await;
    let consumer = site.consumer().await;
    let log = Log::attach(&site.home).await;
    let partitions = log.identity().await.partitions;
    let first = accepted(Uuid::new_v4(), site.client_number().await);
    let mut other = first.clone();
    other.event.value += 1.0;
    for event in [&first, &first, &other] {
        let result = log.port().append(Topic::Raw, vec![encode(event, partitions)]).await;
        result.into_iter().next().expect("a result").expect("appended");
    }
    site.stored_exactly(&[first.event.id], &log).await;
    let stored = site.tables.stored_events().await.expect("events");
    assert_eq!(stored[0].value, first.event.value);
    let buried = site.tables.buried_records().await.expect("dead letters");
    let buried: Vec<_> = buried.iter().map(|row| (row.id, row.reason.as_str())).collect();
    assert_eq!(buried, [(Some(first.event.id), "id_conflict")]);
    let copies = log.records(Topic::Dlq).await;
    assert_eq!(copies.len(), 1);
    tells_its_story(&copies[0], "id_conflict");
    assert_eq!(
        counter(&consumer.registry, "consumer_records_total", Some(("result", "duplicate"))),
        1
    );
    is_conserved(&consumer, 3, 1).await;
    log.close().await;
    consumer.stop().await;
    site.remove().await;
}

pub(crate) fn accepted(device: Uuid, client: ClientId) -> Accepted {
    let event = Event {
        id: EventId(Uuid::new_v4()),
        device_id: DeviceId(device),
        event_type: "temperature".to_owned(),
        value: 21.5,
        timestamp_ms: clock::unix_ms(),
        metadata: None,
    };
    Accepted { event, client, received_at_us: clock::unix_us(), unsure: None, replay: false }
}

/// One of each kind, all of one device, each with an id of its own.
pub(crate) fn poisons(device: Uuid, client: ClientId, partitions: u32) -> Vec<Poison> {
    let good = || encode(&accepted(device, client), partitions);
    let replaced = |from: &str, to: &str| {
        let record = good();
        let value = String::from_utf8(record.value.to_vec()).expect("JSON");
        let changed = value.replace(from, to);
        assert_ne!(changed, value);
        NewRecord { value: changed.into(), ..record }
    };
    let bytes = |value: Vec<u8>| NewRecord { value: value.into(), ..good() };
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let metadata = |metadata: &str| replaced("}", &format!(",\"metadata\":{metadata}}}"));
    let wrong_utf8 = {
        let mut value = good().value.to_vec();
        value.iter_mut().filter(|byte| **byte == b'm').for_each(|byte| *byte = 0xff);
        value
    };
    let headers = |name: &str, value: &[u8]| {
        let kept = good().headers;
        let kept = kept.iter().filter(|(kept, _)| *kept != name);
        let mut headers = Headers::builder().with(name, value);
        kept.for_each(|(name, value)| headers.push(name, value));
        NewRecord { headers: headers.build(), ..good() }
    };
    let at = |timestamp_ms: i64| {
        let mut event = accepted(device, client);
        event.event.timestamp_ms = timestamp_ms;
        encode(&event, partitions)
    };
    let mut nobody = accepted(device, client);
    nobody.client = ClientId(client.0.wrapping_add(1));
    vec![
        (replaced("21.5", "\"21.5\""), "malformed"),
        (replaced("21.5", "1e999"), "malformed"),
        (replaced("temperature", "tempe\\u0000rature"), "malformed"),
        (metadata("{\"a\":\"\\u0000\"}"), "malformed"),
        (metadata(&deep), "malformed"),
        (metadata(&format!("{{\"a\":{deep}}}")), "malformed"),
        (bytes(wrong_utf8), "malformed"),
        (bytes(Vec::new()), "malformed"),
        (bytes(b"null".to_vec()), "malformed"),
        (NewRecord { key: None, ..good() }, "malformed"),
        (NewRecord { key: Some(Bytes::from_static(b"another key")), ..good() }, "malformed"),
        (NewRecord { headers: Headers::default(), ..good() }, "malformed"),
        (headers("client", &[0xff, 0x00, 0xfe]), "malformed"),
        (headers("received-at", b"yesterday"), "malformed"),
        (encode(&nobody, partitions), "unknown_client"),
        (at(1), "out_of_range"),
        (at(clock::unix_ms() + 400 * 86_400_000), "out_of_range"),
        (at(i64::MAX), "out_of_range"),
    ]
}

fn is_copy(copy: &Record, poison: &NewRecord) -> bool {
    let own = copy.headers.iter().filter(|(name, _)| !name.starts_with("dlq."));
    copy.key == poison.key && copy.value == poison.value && own.eq(poison.headers.iter())
}

fn text<'a>(copy: &'a Record, header: &str) -> &'a str {
    let value = copy.headers.get(header).unwrap_or_else(|| panic!("no header {header}"));
    std::str::from_utf8(value).expect("text")
}

fn tells_its_story(copy: &Record, reason: &str) {
    assert_eq!(text(copy, "dlq.topic"), "metrics.raw");
    assert_eq!(text(copy, "dlq.group"), "pulsestream-store");
    assert_eq!(text(copy, "dlq.reason"), reason);
    assert_eq!(text(copy, "dlq.attempt"), "1");
    assert!(!text(copy, "dlq.error").is_empty());
    for number in ["dlq.partition", "dlq.offset", "dlq.timestamp", "dlq.first-at", "dlq.last-at"] {
        assert!(text(copy, number).parse::<i64>().is_ok(), "{number}: {}", text(copy, number));
    }
}

/// What was read was stored, or known, or buried. Counted a moment after it is committed.
pub(crate) async fn is_conserved(consumer: &Running, read: usize, dead: usize) {
    let count = |name, label| counter(&consumer.registry, name, label) as usize;
    let result = |result| count("consumer_records_total", Some(("result", result)));
    wait_for("read = stored + duplicate + dead", PATIENCE, async || {
        result("stored") + result("duplicate") + result("dead") == read
    })
    .await;
    assert_eq!(count("consumer_read_records_total", None), read);
    assert_eq!((result("dead"), count("dead_letters_total", None)), (dead, dead));
}
