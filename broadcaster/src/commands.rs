//! What a client of the framed WebSocket may say.

use std::sync::Arc;

use pulsestream_shared::config::Secret;
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::filter::Audience;
use crate::wish::Wish;

/// Characters of a subscription's name.
const NAME_CHARS: usize = 64;

/// What a command is: its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Begin a subscription.
    Subscribe,
    /// End one.
    Unsubscribe,
    /// Go on by another token.
    Auth,
    /// Answer.
    Ping,
}

impl Kind {
    /// Every one that is known; `docs/asyncapi.json` describes each.
    pub(crate) const ALL: [Self; 4] = [Self::Subscribe, Self::Unsubscribe, Self::Auth, Self::Ping];

    /// The word a client says.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Auth => "auth",
            Self::Ping => "ping",
        }
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// A command that can be tried.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    Subscribe { id: Value, sub: Arc<str>, wish: Box<Wish> },
    Unsubscribe { id: Value, sub: Arc<str> },
    Auth(Auth),
    Ping { id: Value },
}

/// A token, to begin with or to go on with.
#[derive(Debug, PartialEq)]
pub(crate) struct Auth {
    pub(crate) id: Value,
    pub(crate) token: Secret,
}

/// Why there is none.
#[derive(Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing a client of this protocol says: the connection is closed.
    NoCommand,
    /// A command that cannot be done: the client is told.
    Refused { id: Value, code: &'static str, detail: String },
}

impl Command {
    /// Reads a text frame.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) fn parse(audience: Audience, text: &str) -> Result<Self, Fault> {
        let (kind, id, members) = parts(text).ok_or(Fault::NoCommand)?;
        let name = |members: &Map<String, Value>| match members.get("sub").and_then(Value::as_str) {
            Some(sub) if !sub.is_empty() && sub.chars().count() <= NAME_CHARS => Ok(Arc::from(sub)),
            _ => Err("sub must be a text of 1 to 64 characters".to_owned()),
        };
        let Some(known) = Kind::of(&kind) else {
            let detail = format!("{kind:?} is no command of this version");
            return Err(Fault::Refused { id, code: "unknown_command", detail });
        };
        let read = match known {
            Kind::Ping => return Ok(Self::Ping { id }),
            Kind::Auth => Auth::of(id.clone(), &members)
                .map(Self::Auth)
                .ok_or_else(|| "token must be a text".to_owned()),
            Kind::Unsubscribe => {
                name(&members).map(|sub| Self::Unsubscribe { id: id.clone(), sub })
            }
            Kind::Subscribe => name(&members).and_then(|sub| {
                let wish = Box::new(wish(audience, &members)?);
                Ok(Self::Subscribe { id: id.clone(), sub, wish })
            }),
        };
        read.map_err(|detail| Fault::Refused { id, code: "bad_command", detail })
    }
}

impl Auth {
    /// Reads the first message of a client that nobody knows yet; `None` when it is anything but this command.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (kind, id, members) = parts(text)?;
        Self::of(id, &members).filter(|_| Kind::of(&kind) == Some(Kind::Auth))
    }

    fn of(id: Value, members: &Map<String, Value>) -> Option<Self> {
        let token = members.get("token")?.as_str()?;
        Some(Self { id, token: token.into() })
    }
}

/// What it is, its id, and the other members.
fn parts(text: &str) -> Option<(String, Value, Map<String, Value>)> {
    let Ok(Value::Object(mut members)) = serde_json::from_str(text) else { return None };
    let id = members.remove("id").unwrap_or_default();
    match members.remove("type") {
        Some(Value::String(kind)) => Some((kind, id, members)),
        _ => None,
    }
}

/// The members that a query has too.
fn wish(audience: Audience, members: &Map<String, Value>) -> Result<Wish, String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for name in ["deviceId", "eventType", "mode", "windowMs", "cursor"] {
        let values = match members.get(name) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(values)) if name == "deviceId" || name == "eventType" => &values[..],
            Some(value) => std::slice::from_ref(value),
        };
        for value in values {
            match value {
                Value::String(text) => query.append_pair(name, text),
                Value::Number(number) => query.append_pair(name, &number.to_string()),
                _ => return Err(format!("{name} is neither a text nor a number")),
            };
        }
    }
    Wish::parse(audience, &query.finish()).map_err(|problem| {
        let faults = problem.fields().iter();
        let faults: Vec<_> = faults.map(|f| format!("{} {}", f.field, f.message)).collect();
        faults.join("; ")
    })
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;
    use serde_json::json;

    use super::*;
    use crate::resume::From;
    use crate::wish::Mode;

    const ME: Audience = Audience::Client(ClientId(7));

    fn parse(command: &Value) -> Result<Command, Fault> {
        Command::parse(ME, &command.to_string())
    }

    fn code(command: &Value) -> &'static str {
        match parse(command) {
            Err(Fault::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_subscription_says_what_a_query_can_say() {
        let command = json!({
            "type": "subscribe", "id": 7, "sub": "a", "eventType": ["cpu", "mem free&"],
            "deviceId": "00000000-0000-0000-0000-000000000009", "mode": "window", "windowMs": 100,
            "cursor": "earliest",
        });
        let Ok(Command::Subscribe { id, sub, wish }) = parse(&command) else { panic!("refused") };
        assert_eq!((id, &*sub, wish.from), (json!(7), "a", From::Earliest));
        assert_eq!(wish.mode, Mode::Window(std::time::Duration::from_millis(100)));
        assert_eq!(wish.filter.event_types(), ["cpu", "mem free&"]);
        assert_eq!(wish.filter.devices().len(), 1);
    }

    #[test]
    fn what_cannot_be_done_is_told_with_its_id() {
        assert_eq!(code(&json!({"type": "dance"})), "unknown_command");
        assert_eq!(code(&json!({"type": "subscribe"})), "bad_command");
        assert_eq!(code(&json!({"type": "subscribe", "sub": "a", "mode": true})), "bad_command");
        assert_eq!(code(&json!({"type": "unsubscribe", "sub": "x".repeat(65)})), "bad_command");
        let told = parse(&json!({"type": "subscribe", "id": "x", "sub": "a", "deviceId": ["no"]}));
        assert!(matches!(told, Err(Fault::Refused { id, detail, .. })
            if id == "x" && detail.contains("deviceId must be a UUID")));
    }

    #[test]
    fn the_first_message_is_auth_and_nothing_else_and_its_token_is_not_printed() {
        let text = json!({"type": "auth", "id": 1, "token": "ps_token_secret"}).to_string();
        let auth = Auth::parse(&text).unwrap();
        assert_eq!((&auth.id, auth.token.expose()), (&json!(1), "ps_token_secret"));
        assert!(!format!("{auth:?}").contains("secret"));
        assert_eq!(Command::parse(ME, &text), Ok(Command::Auth(auth)));
        for other in
            ["{\"type\":\"ping\"}", "{\"type\":\"auth\",\"token\":7}", "{\"token\":\"x\"}", "x"]
        {
            assert_eq!(Auth::parse(other), None, "{other}");
        }
        assert_eq!(code(&json!({"type": "auth"})), "bad_command");
    }

    #[test]
    fn what_is_no_object_with_a_type_is_no_command() {
        for text in ["", "hello", "[]", "{}", "{\"type\":7}", "null"] {
            assert_eq!(Command::parse(ME, text), Err(Fault::NoCommand), "{text}");
        }
    }
}
