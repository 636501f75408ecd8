//! Which letters are meant: flags, and names of letters.

use clap::Args;
use pulsestream_shared::clock;
use pulsestream_shared::config::parse_duration;
use pulsestream_shared::event::{ClientId, DeviceId, EventId};
use pulsestream_shared::log::{Offset, Partition};
use pulsestream_shared::process::{EXIT_USAGE, Failure};
use pulsestream_shared::store::{DeadReason, Letter, LetterFilter};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Desk;

/// Flags that say which letters are meant: those that meet all of them.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Of this reason: malformed, unknown_client, out_of_range, id_conflict, rejected.
    #[arg(long)]
    reason: Option<String>,
    /// That died since then: a duration such as 24h, or a time such as 2026-11-27T00:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Of this device.
    #[arg(long, value_name = "UUID")]
    device: Option<String>,
    /// Of this client, by name or number.
    #[arg(long)]
    client: Option<String>,
    /// That died fewer times than this. `replay` leaves out those that died 5 times unless told otherwise.
    #[arg(long, value_name = "N")]
    pub(super) max_attempts: Option<u32>,
}

/// The command line cannot be used as it is.
pub(super) fn usage(reason: impl Into<String>) -> Failure {
    Failure { reason: reason.into(), code: EXIT_USAGE }
}

impl Which {
    /// True when no flag was given.
    pub(super) fn is_empty(&self) -> bool {
        let texts = [&self.reason, &self.since, &self.device, &self.client];
        texts.iter().all(|text| text.is_none()) && self.max_attempts.is_none()
    }

    pub(super) fn filter(&self, desk: &Desk) -> Result<LetterFilter, Failure> {
        let client = |text: &String| client(desk, text);
        Ok(LetterFilter {
            reason: self.reason.as_deref().map(reason).transpose()?,
            since_us: self
                .since
                .as_deref()
                .map(|text| since_us(text, clock::unix_us()))
                .transpose()?,
            device: self.device.as_deref().map(device).transpose()?,
            client: self.client.as_ref().map(client).transpose()?,
            max_attempts: self.max_attempts,
            ..LetterFilter::default()
        })
    }
}

fn reason(text: &str) -> Result<DeadReason, Failure> {
    let known = DeadReason::ALL.into_iter();
    known.clone().find(|reason| reason.as_str() == text).ok_or_else(|| {
        let words: Vec<_> = known.map(DeadReason::as_str).collect();
        usage(format!("--reason {text}: choose from {}", words.join(", ")))
    })
}

fn since_us(text: &str, now_us: i64) -> Result<i64, Failure> {
    if let Some(span) = parse_duration(text) {
        let span_us = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        return Ok(now_us.saturating_sub(span_us));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        usage(format!(
            "--since {text}: give a duration such as 24h or a time such as 2026-11-27T00:00:00Z"
        ))
    })?;
    Ok(i64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX))
}

fn device(text: &str) -> Result<DeviceId, Failure> {
    DeviceId::parse(text)
        .ok_or_else(|| usage(format!("--device {text}: not a UUID in hyphenated form")))
}

/// A name before a number: nothing forbids a client called 7.
fn client(desk: &Desk, text: &str) -> Result<ClientId, Failure> {
    let named = desk.clients.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
    named.or_else(|| text.parse().ok().map(ClientId)).ok_or_else(|| {
        usage(format!(
            "--client {text}: no client has this name; `pulsestream keys list` shows them"
        ))
    })
}

/// What a letter is called on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// `PARTITION-OFFSET`, and the beginning of its epoch, without hyphens, where one was given.
    Place(Partition, Offset, String),
    /// The id of its event.
    Event(EventId),
}

impl Name {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(id) = EventId::parse(text) {
            return Ok(Self::Event(id));
        }
        let place = || {
            let (place, epoch) = text.split_once('@').unwrap_or((text, ""));
            let (partition, offset) = place.split_once('-')?;
            let epoch = epoch.replace('-', "").to_ascii_lowercase();
            let is_hex = epoch.bytes().all(|byte| byte.is_ascii_hexdigit());
            let place = (partition.parse().ok()?, offset.parse().ok()?);
            is_hex.then_some(Self::Place(place.0, place.1, epoch))
        };
        place().ok_or_else(|| {
            usage(format!(
                "{text}: a dead letter is called PARTITION-OFFSET, as `pulsestream dlq list` shows, or by \
                 the id of its event"
            ))
        })
    }

    /// The filter, for letters of this name, whatever their epoch.
    pub(super) fn filter(&self, filter: LetterFilter) -> LetterFilter {
        match self {
            Self::Place(partition, offset, _) => {
                LetterFilter { partition: Some(*partition), offset: Some(*offset), ..filter }
            }
            Self::Event(id) => LetterFilter { id: Some(*id), ..filter },
        }
    }

    pub(super) fn is_of(&self, letter: &Letter) -> bool {
        match self {
            Self::Place(.., epoch) => letter.place.epoch.as_simple().to_string().starts_with(epoch),
            Self::Event(_) => true,
        }
    }
}

/// The filter, for these letters, which all have the name: an event may have several, a place not.
pub(super) fn only(
    filter: LetterFilter,
    text: &str,
    letters: &[Letter],
) -> Result<LetterFilter, Failure> {
    let name = Name::parse(text)?;
    let filter = name.filter(filter);
    match (&name, letters) {
        (Name::Event(_), _) => Ok(filter),
        (Name::Place(..), [letter]) => {
            Ok(LetterFilter { epoch: Some(letter.place.epoch), ..filter })
        }
        (Name::Place(..), letters) => {
            let names: Vec<_> = letters.iter().map(|it| it.place.to_string()).collect();
            let names = names.join(", ");
            Err(format!("{text}: there are several, of different logs: {names}; name one").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::store::LetterPlace;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_letter_is_called_by_its_place_or_its_event() {
        let place = |text: &str| Name::parse(text).ok();
        let named = |epoch: &str| Some(Name::Place(3, 41, epoch.to_owned()));
        assert_eq!(place("3-41"), named(""));
        assert_eq!(place("3-41@00FF"), named("00ff"));
        let full = LetterPlace { partition: 3, epoch: Uuid::from_u128(0xff), offset: 41 };
        assert_eq!(place(&full.to_string()), named("000000000000000000000000000000ff"));
        let id = Uuid::from_u128(7);
        assert_eq!(place(&id.to_string()), Some(Name::Event(EventId(id))));
        for odd in ["", "3", "3-", "-41", "3-x", "3-41@xyz", "3:41"] {
            assert_eq!(Name::parse(odd).unwrap_err().code, EXIT_USAGE, "{odd}");
        }
    }

    #[test]
    fn since_is_a_span_or_a_time() {
        assert_eq!(since_us("1s", 5_000_000).ok(), Some(4_000_000));
        assert_eq!(since_us("1970-01-01T00:00:05Z", 0).ok(), Some(5_000_000));
        assert!(since_us("yesterday", 0).unwrap_err().reason.contains("24h"));
    }

    #[test]
    fn an_unknown_reason_names_the_known_ones() {
        assert_eq!(reason("id_conflict").ok(), Some(DeadReason::IdConflict));
        assert!(reason("odd").unwrap_err().reason.contains("unknown_client"));
    }
}
