//! `pulsestream dlq list`.

use pulsestream_shared::process::Failure;
use pulsestream_shared::store::{Letter, LetterFilter, LetterState, Progress};
use serde_json::{Value, json};

use super::tally::Tally;
use super::{Desk, judged};
use crate::output::{print, time_text};

pub(super) async fn run(
    desk: &Desk,
    filter: &LetterFilter,
    limit: usize,
    as_json: bool,
) -> Result<(), Failure> {
    let stores = &desk.stores;
    let progress = desk.progress().await?;
    let letters = stores.letters.newest(filter, limit).await.map_err(|it| it.to_string())?;
    let letters: Vec<_> = letters.into_iter().map(|letter| judged(letter, &progress)).collect();
    if as_json {
        let all: Vec<_> =
            letters.iter().map(|(letter, state)| describe(desk, letter, *state)).collect();
        return Ok(print(&format!("{}\n", json!(all)))?);
    }
    let count = stores.letters.count(filter).await.map_err(|it| it.to_string())?;
    let count: Tally = count.into_iter().collect();
    let mut text = String::new();
    if !letters.is_empty() {
        text.push_str(&line(["LETTER", "DIED", "REASON", "DEATHS", "STATE", "CLIENT", "EVENT"]));
        text.push_str("ERROR\n");
    }
    for (letter, state) in &letters {
        text.push_str(&row(desk, letter, *state, &progress));
    }
    text.push_str(&count.text());
    if count.total() > letters.len() as u64 {
        text.push_str(&format!("; these are the newest {}, --limit shows more", letters.len()));
    }
    text.push('\n');
    Ok(print(&text)?)
}

fn line(columns: [&str; 7]) -> String {
    let [letter, died, reason, deaths, state, client, event] = columns;
    format!("{letter:<16} {died:<20} {reason:<14} {deaths:<6} {state:<8} {client:<16} {event:<36} ")
}

fn row(desk: &Desk, letter: &Letter, state: LetterState, progress: &[Progress]) -> String {
    let columns = line([
        &short_name(letter, progress),
        &time_text(letter.died_at_us.div_euclid(1_000)).unwrap_or_default(),
        &letter.reason,
        &letter.attempt.to_string(),
        state.as_str(),
        &letter.client.map_or_else(|| "-".to_owned(), |client| desk.client(client)),
        &letter.id.map_or_else(|| "-".to_owned(), |id| id.to_string()),
    ]);
    format!("{columns}{}\n", letter.detail)
}

/// Without its epoch when that is the one of the log that is read now.
fn short_name(letter: &Letter, progress: &[Progress]) -> String {
    let place = letter.place;
    let mut places = progress.iter();
    if places.any(|it| it.partition == place.partition && it.epoch == place.epoch) {
        format!("{}-{}", place.partition, place.offset)
    } else {
        let epoch = place.epoch.as_simple().to_string();
        format!("{}-{}@{}", place.partition, place.offset, epoch.get(..8).unwrap_or_default())
    }
}

/// What programs are told of a letter.
pub(super) fn describe(desk: &Desk, letter: &Letter, state: LetterState) -> Value {
    json!({
        "letter": letter.place.to_string(),
        "partition": letter.place.partition,
        "offset": letter.place.offset,
        "epoch": letter.place.epoch,
        "state": state.as_str(),
        "reason": letter.reason,
        "error": letter.detail,
        "sqlstate": letter.sqlstate,
        "deaths": letter.attempt,
        "diedAt": time_text(letter.died_at_us.div_euclid(1_000)),
        "client": letter.client.and_then(|client| desk.clients.get(&client)),
        "clientId": letter.client,
        "id": letter.id,
        "deviceId": letter.device,
    })
}
