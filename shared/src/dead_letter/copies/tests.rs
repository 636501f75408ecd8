//! Copies are found where the rows say, whatever else lies on the topic.

use crate::log::embedded::{EmbeddedConfig, EmbeddedLog};
use crate::log::{Headers, NewRecord};
use crate::store::LetterPlace;
use uuid::Uuid;

use super::*;

fn place(offset: Offset) -> LetterPlace {
    LetterPlace { partition: 1, epoch: Uuid::from_u128(0xe), offset }
}

/// A letter whose row names a copy in partition 0.
fn letter(offset: Offset, copy: Option<Offset>) -> Letter {
    Letter {
        place: place(offset),
        client: None,
        id: None,
        device: None,
        reason: "malformed".to_owned(),
        sqlstate: None,
        detail: String::new(),
        attempt: 1,
        died_at_us: 0,
        copy: copy.map(|copy| (0, copy)),
        replay: None,
    }
}

/// The copy of the letter that died at that offset.
fn copy(offset: Offset) -> NewRecord {
    let headers = Headers::builder().with("dlq.letter", place(offset).to_string().as_bytes());
    NewRecord {
        partition: 0,
        key: None,
        value: offset.to_string().into(),
        headers: headers.build(),
        outcomes: Vec::new(),
    }
}

/// The offsets of the letters, each with the bytes that were found, in the order they were found.
async fn read(
    log: &EmbeddedLog,
    letters: Vec<Letter>,
) -> Vec<(Offset, Result<String, &'static str>)> {
    let mut copies = Copies::of(letters);
    let mut all = Vec::new();
    loop {
        let found = copies.next(log).await.unwrap();
        if found.is_empty() {
            return all;
        }
        all.extend(found.into_iter().map(|(letter, copy)| {
            let text = copy.map(|copy| String::from_utf8(copy.value.to_vec()).unwrap());
            (letter.place.offset, text)
        }));
    }
}

#[tokio::test]
async fn every_letter_is_answered_once_with_its_own_copy_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(EmbeddedConfig {
        dir: folder.path().to_owned(),
        partitions: 2,
        retention: std::time::Duration::from_secs(3_600),
        max_bytes: 1 << 30,
        append_timeout: std::time::Duration::from_secs(5),
    })
    .await
    .unwrap();
    // Letter n has its copy at 2 n; in between lie copies that no row names.
    let on_topic = (0..400).flat_map(|n| [copy(n), copy(n + 7_000)]);
    for result in log.append(Topic::Dlq, on_topic.collect()).await {
        result.unwrap();
    }
    log.truncate(Topic::Dlq, 0, 20).await.unwrap();

    let mut letters: Vec<_> = (0..400).rev().step_by(3).map(|n| letter(n, Some(2 * n))).collect();
    letters.push(letter(1_000, Some(41))); // not its copy
    letters.push(letter(1_001, Some(5_000))); // beyond the end
    letters.push(letter(1_002, None));
    letters.push(letter(1_003, Some(12))); // deleted
    let count = letters.len();
    let all = read(&log, letters).await;
    assert_eq!(all.len(), count);
    for (offset, found) in all {
        let expected = match offset {
            1_002 => Err(UNKNOWN),
            10..400 => Ok(offset.to_string()),
            _ => Err(GONE),
        };
        assert_eq!(found, expected, "letter {offset}");
    }
    log.close().await;
}
