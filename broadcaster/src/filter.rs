//! What a subscriber asked for.

use std::borrow::Cow;

use pulsestream_shared::event::{ClientId, DeviceId, EVENT_TYPE_CHARS};
use pulsestream_shared::problem::{Code, FieldError, Problem};
use url::form_urlencoded;

use crate::range::LiveEvent;

/// Values of one kind a filter may name.
pub(crate) const MOST: usize = 100;

/// Whose events a subscriber may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Audience {
    /// One client's.
    Client(ClientId),
    /// Everybody's: `--dev` on loopback.
    Everybody,
}

/// Devices and event types, sorted and each once; an empty list means all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Filter {
    pub(crate) audience: Audience,
    devices: Vec<DeviceId>,
    event_types: Vec<String>,
}

impl Filter {
    /// Reads `deviceId` and `eventType`, each repeatable, from a query string.
    ///
    /// # Errors
    /// 400 with every fault.
    pub(crate) fn parse(audience: Audience, query: &str) -> Result<Self, Problem> {
        let (mut devices, mut event_types) = (Vec::new(), Vec::new());
        let errors = faults(query, |name, value| match name {
            "deviceId" => match DeviceId::parse(value) {
                Some(device) => keep(&mut devices, device),
                None => Err("deviceId must be a UUID in hyphenated form"),
            },
            "eventType" if EVENT_TYPE_CHARS.contains(&value.chars().count()) => {
                keep(&mut event_types, value.to_owned())
            }
            "eventType" => Err("expected 2 to 50 characters"),
            _ => Ok(()),
        });
        if errors.is_empty() {
            Ok(Self::new(audience, devices, event_types))
        } else {
            Err(Problem::from(Code::BadRequest).errors(errors))
        }
    }

    /// Of these devices and types; an empty list means all. Whoever asks for the same is of one group, in
    /// whatever order it was written.
    pub(crate) fn new(
        audience: Audience,
        mut devices: Vec<DeviceId>,
        mut event_types: Vec<String>,
    ) -> Self {
        devices.sort_unstable();
        devices.dedup();
        event_types.sort_unstable();
        event_types.dedup();
        Self { audience, devices, event_types }
    }

    /// What of this may be shown to whoever may see `only`: asking for nothing in particular means all that
    /// is allowed.
    ///
    /// # Errors
    /// What was asked for by name and is not allowed.
    pub(crate) fn narrowed(self, only: &Self) -> Result<Self, Beyond> {
        Ok(Self {
            audience: self.audience,
            devices: narrowed(self.devices, &only.devices)
                .map_err(|device| Beyond(format!("deviceId {device}")))?,
            event_types: narrowed(self.event_types, &only.event_types)
                .map_err(|event_type| Beyond(format!("eventType {event_type:?}")))?,
        })
    }

    /// True when whoever may see `only` may see all of this.
    pub(crate) fn is_within(&self, only: &Self) -> bool {
        self.audience == only.audience
            && self.clone().narrowed(only).is_ok_and(|narrowed| narrowed == *self)
    }

    pub(crate) fn devices(&self) -> &[DeviceId] {
        &self.devices
    }

    pub(crate) fn event_types(&self) -> &[String] {
        &self.event_types
    }

    /// True when events of that client may be shown.
    pub(crate) fn sees(&self, other: ClientId) -> bool {
        match self.audience {
            Audience::Client(client) => client == other,
            Audience::Everybody => true,
        }
    }

    /// True when the subscriber is to see the event. The audience is checked here too, whatever index
    /// led to this subscriber: one tenant never sees another's event.
    pub(crate) fn wants(&self, event: &LiveEvent) -> bool {
        let of_type = |wanted: &String| wanted.as_bytes() == &event.event_type[..];
        self.sees(event.client)
            && (self.devices.is_empty() || self.devices.contains(&event.device))
            && (self.event_types.is_empty() || self.event_types.iter().any(of_type))
    }
}

/// What was asked for and is not allowed, in the words of whoever asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Beyond(pub(crate) String);

/// Those asked for when all are allowed, those allowed when none was asked for, else the first that is not
/// allowed.
fn narrowed<T: PartialEq + Clone>(asked: Vec<T>, allowed: &[T]) -> Result<Vec<T>, T> {
    if allowed.is_empty() {
        return Ok(asked);
    }
    if asked.is_empty() {
        return Ok(allowed.to_vec());
    }
    match asked.iter().find(|value| !allowed.contains(value)) {
        Some(beyond) => Err(beyond.clone()),
        None => Ok(asked),
    }
}

/// Reads every parameter of a query string; what was wrong with those that were refused.
pub(crate) fn faults(
    query: &str,
    mut read: impl FnMut(&str, &str) -> Result<(), &'static str>,
) -> Vec<FieldError> {
    let fault = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
        let message = read(&name, &value).err()?;
        Some(FieldError { field: name.into_owned(), message: message.to_owned() })
    };
    form_urlencoded::parse(query.as_bytes()).filter_map(fault).collect()
}

fn keep<T>(list: &mut Vec<T>, value: T) -> Result<(), &'static str> {
    if list.len() >= MOST {
        return Err("at most 100 values");
    }
    list.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::tests::event;

    const ME: Audience = Audience::Client(ClientId(7));

    #[test]
    fn devices_and_types_narrow_and_nothing_crosses_tenants() {
        let event = event(1, 1);
        let wants = |audience, query: &str| Filter::parse(audience, query).unwrap().wants(&event);
        assert!(wants(ME, ""));
        assert!(!wants(Audience::Client(ClientId(8)), ""));
        assert!(wants(Audience::Everybody, ""));
        assert!(wants(ME, "deviceId=00000000-0000-0000-0000-000000000009&eventType=cpu"));
        assert!(wants(ME, "eventType=mem&eventType=cpu"));
        assert!(!wants(ME, "eventType=mem"));
        assert!(!wants(ME, "deviceId=00000000-0000-0000-0000-000000000008"));
    }

    #[test]
    fn a_restriction_narrows_what_is_asked_and_refuses_what_is_beyond_it() {
        const A: &str = "deviceId=00000000-0000-0000-0000-00000000000a";
        const B: &str = "deviceId=00000000-0000-0000-0000-00000000000b";
        let filter = |query: &str| Filter::parse(ME, query).unwrap();
        let narrowed = |asked: &str, only: &str| filter(asked).narrowed(&filter(only));
        let both = format!("{A}&{B}");
        assert_eq!(narrowed("", ""), Ok(filter("")));
        assert_eq!(narrowed("", &both), Ok(filter(&both)), "all that is allowed");
        assert_eq!(narrowed(A, &both), Ok(filter(A)));
        assert_eq!(narrowed(A, ""), Ok(filter(A)));
        assert_eq!(narrowed(A, "eventType=cpu"), Ok(filter(&format!("{A}&eventType=cpu"))));
        let beyond = narrowed(&both, A).unwrap_err();
        assert_eq!(beyond.0, "deviceId 00000000-0000-0000-0000-00000000000b");
        assert_eq!(narrowed("eventType=mem", "eventType=cpu").unwrap_err().0, "eventType \"mem\"");
        assert!(filter(A).is_within(&filter(&both)) && filter(A).is_within(&filter("")));
        assert!(!filter("").is_within(&filter(A)), "it sees more");
        assert!(!filter(&both).is_within(&filter(A)));
        let of_another = Filter::parse(Audience::Client(ClientId(8)), "").unwrap();
        assert!(!filter(A).is_within(&of_another));
    }

    #[test]
    fn faults_are_told_and_unknown_names_ignored() {
        assert!(Filter::parse(ME, "x=1").is_ok());
        assert!(Filter::parse(ME, "deviceId=nope").is_err());
        assert!(Filter::parse(ME, "eventType=x").is_err());
        assert!(Filter::parse(ME, "cursor=abc").is_ok());
    }
}
