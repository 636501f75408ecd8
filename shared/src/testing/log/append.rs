//! Rules of `append`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, poll_immediate};

use super::{
    Fixture, PATIENCE, append, bounds_of, every_partition, numbered, read_all, record, values,
};
use crate::clock::unix_ms;
use crate::log::{AppendError, Headers, NewRecord, Topic};
use crate::testing::wait_for;

/// Keys, values and headers of every odd shape come back as they went in.
pub async fn records_come_back_byte_for_byte(it: Fixture) {
    let mut odd = Headers::builder().with("a", b"1").with("a", b"2").with("empty", b"");
    odd.push("null", None);
    odd.push("bytes", Some(&[0, 255, 10]));
    let odd = odd.build();
    let record = |key: Option<&'static [u8]>, value: &'static [u8], headers: &Headers| NewRecord {
        partition: 1,
        key: key.map(Bytes::from_static),
        value: Bytes::from_static(value),
        headers: headers.clone(),
        outcomes: Vec::new(),
    };
    let sent = vec![
        record(Some(b"key"), b"{\"value\":1}", &odd),
        record(None, b"no key", &Headers::default()),
        record(Some(b""), b"empty key", &odd),
        record(Some(&[0, 159, 146, 150]), b"", &Headers::default()),
        record(Some(b"key"), &[0, 255, 0, 1], &odd),
    ];
    let offsets = append(&it.log, Topic::Raw, sent.clone()).await;
    let read = read_all(&it.log, Topic::Raw, 1).await;
    assert_eq!(read.len(), sent.len());
    for ((sent, read), offset) in sent.iter().zip(&read).zip(offsets) {
        assert_eq!((read.partition, read.offset), (1, offset));
        assert_eq!(read.key, sent.key);
        assert_eq!(read.value, sent.value);
        assert_eq!(
            read.headers.iter().collect::<Vec<_>>(),
            sent.headers.iter().collect::<Vec<_>>()
        );
    }
}

/// Within a batch and between batches one after the other, whatever other partitions get.
pub async fn offsets_grow_and_a_partition_keeps_the_order_of_its_batches(it: Fixture) {
    let mut expected = vec![Vec::new(); 4];
    let mut last = [-1; 4];
    for batch in 0..10 {
        let names = (0..40).map(|n| (n % 4, format!("{batch}-{n}"))).collect::<Vec<_>>();
        let records = names.iter().map(|(index, name)| record(*index, name.clone())).collect();
        let offsets = append(&it.log, Topic::Raw, records).await;
        for ((index, name), offset) in names.into_iter().zip(offsets) {
            let index = usize::try_from(index).expect("small");
            assert!(offset > last[index], "offsets of a partition grow");
            last[index] = offset;
            expected[index].push(name);
        }
    }
    for (partition, expected) in every_partition().zip(expected) {
        let read = read_all(&it.log, Topic::Raw, partition).await;
        assert_eq!(values(&read), expected);
        assert!(read.is_sorted_by(|a, b| a.offset < b.offset));
    }
}

/// No record, no answer, no wait.
pub async fn an_empty_batch_is_answered_with_nothing(it: Fixture) {
    assert!(append(&it.log, Topic::Raw, Vec::new()).await.is_empty());
}

/// Its neighbours in the batch are taken; itself is certainly not there.
pub async fn a_record_for_a_partition_that_does_not_exist_is_refused_alone(it: Fixture) {
    let batch = vec![record(0, "before"), record(4_000, "lost"), record(0, "after")];
    let results = it.log.append(Topic::Raw, batch).await;
    assert_eq!(results.len(), 3);
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[1], Err(AppendError::Refused(_))), "{results:?}");
    assert_eq!(values(&read_all(&it.log, Topic::Raw, 0).await), ["before", "after"]);
}

/// Callers that overlap are not ordered among each other, but each of them is.
pub async fn many_appends_at_once_are_each_answered_and_keep_their_order(it: Fixture) {
    let callers = (0..64).map(|caller| {
        let log = Arc::clone(&it.log);
        tokio::spawn(async move {
            let mut offsets = Vec::new();
            for batch in 0..4 {
                let prefix = format!("{caller}-{batch}");
                offsets.extend(append(&log, Topic::Raw, numbered(2, &prefix, 3)).await);
            }
            assert!(offsets.is_sorted_by(|a, b| a < b), "a caller's batches are in order");
            offsets
        })
    });
    let mut offsets = Vec::new();
    for answered in join_all(callers).await {
        offsets.extend(answered.expect("the caller ends well"));
    }
    offsets.sort_unstable();
    let read = read_all(&it.log, Topic::Raw, 2).await;
    assert_eq!(read.iter().map(|record| record.offset).collect::<Vec<_>>(), offsets);
    assert_eq!(offsets.len(), 64 * 4 * 3);
}

/// Between the call and its answer, by the clock both share here, and never going back.
pub async fn records_carry_the_time_at_which_the_log_took_them(it: Fixture) {
    let before = unix_ms();
    for n in 0..5 {
        append(&it.log, Topic::Raw, numbered(0, &n.to_string(), 2)).await;
    }
    let after = unix_ms();
    let read = read_all(&it.log, Topic::Raw, 0).await;
    assert!(read.iter().all(|r| (before..=after).contains(&r.logged_at_ms)), "{read:?}");
    assert!(read.is_sorted_by_key(|record| record.logged_at_ms));
}

/// The record of an abandoned call arrives, once, and before a later one of its partition.
pub async fn dropping_an_append_loses_only_the_answer(it: Fixture) {
    // The first call may have connections to make; the one that is dropped finds them made.
    append(&it.log, Topic::Raw, vec![record(3, "first")]).await;
    let abandoned = it.log.append(Topic::Raw, vec![record(3, "abandoned")]);
    drop(poll_immediate(abandoned).await);
    wait_for("the abandoned record", PATIENCE, || async {
        bounds_of(&it.log, Topic::Raw, 3).await.next >= 2
    })
    .await;
    append(&it.log, Topic::Raw, vec![record(3, "last")]).await;
    let read = read_all(&it.log, Topic::Raw, 3).await;
    assert_eq!(values(&read), ["first", "abandoned", "last"]);
}

/// Two topics share neither records nor bounds.
pub async fn dead_letters_are_apart_from_events(it: Fixture) {
    append(&it.log, Topic::Raw, vec![record(0, "event"), record(0, "event")]).await;
    append(&it.log, Topic::Dlq, vec![record(0, "dead")]).await;
    assert_eq!(values(&read_all(&it.log, Topic::Raw, 0).await), ["event", "event"]);
    assert_eq!(values(&read_all(&it.log, Topic::Dlq, 0).await), ["dead"]);
    assert_eq!(bounds_of(&it.log, Topic::Dlq, 0).await.next, 1);
}
