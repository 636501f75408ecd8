//! Rules of `bounds`, `read` and `locate`.

use super::{
    ALL, Fixture, PARTITIONS, PATIENCE, append, bounds_of, every_partition, numbered, read_all,
    record, values,
};
use crate::clock::unix_ms;
use crate::log::{Bounds, ReadLimit, Topic};
use crate::testing::wait_for;

/// Empty partitions have equal bounds; a confirmed record is below `next` at once.
pub async fn bounds_cover_what_was_confirmed(it: Fixture) {
    let empty = it.log.bounds(Topic::Raw).await.expect("bounds");
    assert_eq!(empty, vec![Bounds { first: 0, next: 0 }; PARTITIONS as usize]);
    for n in 0..20 {
        let offsets = append(&it.log, Topic::Raw, numbered(1, &n.to_string(), 3)).await;
        let bounds = bounds_of(&it.log, Topic::Raw, 1).await;
        assert_eq!(bounds.first, 0);
        assert!(offsets.iter().all(|offset| *offset < bounds.next), "{offsets:?} {bounds:?}");
    }
    assert_eq!(bounds_of(&it.log, Topic::Raw, 2).await, Bounds { first: 0, next: 0 });
}

/// From the first, from the middle, at and after the end; by records and by bytes.
pub async fn reading_starts_at_the_place_and_ends_at_the_limit(it: Fixture) {
    let offsets = append(&it.log, Topic::Raw, numbered(1, "n", 10)).await;
    append(&it.log, Topic::Raw, vec![record(2, "elsewhere")]).await;
    let read = async |from, records, bytes| {
        let limit = ReadLimit { records, bytes };
        values(&it.log.read(Topic::Raw, 1, from, limit).await.expect("the log can be read"))
    };
    let many = ALL.bytes;
    assert_eq!(read(offsets[7], 100, many).await, ["n-7", "n-8", "n-9"]);
    assert_eq!(read(offsets[0], 2, many).await, ["n-0", "n-1"]);
    assert_eq!(read(offsets[4], 1, many).await, ["n-4"]);
    // Three bytes a value: the third passes seven.
    assert_eq!(read(offsets[0], 100, 7).await, ["n-0", "n-1", "n-2"]);
    assert_eq!(read(offsets[0], 100, 1).await, ["n-0"], "one record at least");
    let next = bounds_of(&it.log, Topic::Raw, 1).await.next;
    assert!(read(next, 100, many).await.is_empty());
    assert!(it.log.read(Topic::Raw, 3, 0, ALL).await.expect("an empty partition").is_empty());
}

/// "From the offset after the last" neither repeats nor skips.
pub async fn reading_on_from_the_last_record_gives_each_record_once(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(0, "n", 257)).await;
    let (mut from, mut seen) = (0, Vec::new());
    loop {
        let limit = ReadLimit { records: 10, bytes: 1 << 20 };
        let part = it.log.read(Topic::Raw, 0, from, limit).await.expect("the log can be read");
        let Some(last) = part.last() else { break };
        assert!(part.len() <= 10);
        from = last.offset + 1;
        seen.extend(values(&part));
    }
    assert_eq!(seen, (0..257).map(|n| format!("n-{n}")).collect::<Vec<_>>());
}

/// Times before the first record, between records, and after the last.
pub async fn a_time_is_located_at_the_first_record_logged_then_or_later(it: Fixture) {
    for partition in 0..3 {
        append(&it.log, Topic::Raw, numbered(partition, "early", 50)).await;
    }
    let mut early_ms = 0;
    for partition in 0..3 {
        let read = read_all(&it.log, Topic::Raw, partition).await;
        early_ms = early_ms.max(read.last().expect("just appended").logged_at_ms);
    }
    wait_for("the clock to move on", PATIENCE, || async { unix_ms() > early_ms }).await;
    for partition in 0..2 {
        append(&it.log, Topic::Raw, numbered(partition, "late", 5)).await;
    }
    let located = it.log.locate(early_ms + 1).await.expect("locate");
    assert_eq!(located, [50, 50, 50, 0], "`next` where nothing is that late");
    assert_eq!(it.log.locate(0).await.expect("locate"), [0, 0, 0, 0]);
    let far = it.log.locate(unix_ms() + 3_600_000).await.expect("locate");
    assert_eq!(far, [55, 55, 50, 0]);
    for partition in every_partition().take(2) {
        let read = read_all(&it.log, Topic::Raw, partition).await;
        let exact = it.log.locate(read[50].logged_at_ms).await.expect("locate");
        let index = usize::try_from(partition).expect("small");
        assert!(exact[index] == 50, "{exact:?}");
    }
}
