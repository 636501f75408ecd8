//! What a client asks for: the same parameters on every transport, and in a `subscribe` command.

use std::time::Duration;

use pulsestream_shared::problem::{Code, FieldError, Problem};

use crate::filter::{Audience, Filter, faults};
use crate::resume::From;

const DEFAULT_WINDOW: Duration = Duration::from_millis(50);
const MOST_WINDOW_MS: u64 = 1_000;

/// When events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// At once.
    Live,
    /// With one write a window.
    Window(Duration),
    /// The newest of each device and type, with one write a window.
    Latest(Duration),
}

/// One subscription as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) filter: Filter,
    pub(crate) mode: Mode,
    pub(crate) from: From,
    /// It asks for what only a framed WebSocket has.
    pub(crate) framed: bool,
}

impl Wish {
    /// Whether a query asks for what only a framed WebSocket has, whoever asks.
    ///
    /// # Errors
    /// 400 with every fault.
    pub(crate) fn is_framed(query: &str) -> Result<bool, Problem> {
        Ok(Self::parse(Audience::Everybody, query)?.framed)
    }

    /// Reads a query string; unknown names are ignored.
    ///
    /// # Errors
    /// 400 with every fault.
    pub(crate) fn parse(audience: Audience, query: &str) -> Result<Self, Problem> {
        let mut errors = Vec::new();
        let filter = Filter::parse(audience, query);
        if let Err(problem) = &filter {
            errors.extend_from_slice(problem.fields());
        }
        let (mut mode, mut window, mut from) = (None, None, None);
        errors.extend(faults(query, |name, value| {
            match name {
                "mode" => mode = Some(read_mode(value)?),
                "windowMs" => window = Some(read_window(value)?),
                "cursor" if value.is_empty() => return Err("is empty: leave it out to begin now"),
                "cursor" => from = Some(From::cursor(value)),
                _ => {}
            }
            Ok(())
        }));
        let framed = mode.is_some() || from.is_some();
        if window.is_some() && !matches!(mode, Some(Named::Window | Named::Latest)) {
            let message = "goes with mode=window or mode=latest".to_owned();
            errors.push(FieldError { field: "windowMs".to_owned(), message });
        }
        let mode = match mode {
            Some(Named::Window) => Mode::Window(window.unwrap_or(DEFAULT_WINDOW)),
            Some(Named::Latest) => Mode::Latest(window.unwrap_or(DEFAULT_WINDOW)),
            Some(Named::Live) | None => Mode::Live,
        };
        match filter {
            Ok(filter) if errors.is_empty() => {
                Ok(Self { filter, mode, from: from.unwrap_or(From::Now), framed })
            }
            _ => Err(Problem::from(Code::BadRequest).errors(errors)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Live,
    Window,
    Latest,
}

fn read_mode(value: &str) -> Result<Named, &'static str> {
    match value {
        "live" => Ok(Named::Live),
        "window" => Ok(Named::Window),
        "latest" => Ok(Named::Latest),
        _ => Err("expected live, window or latest"),
    }
}

fn read_window(value: &str) -> Result<Duration, &'static str> {
    let ms = value.parse().ok().filter(|ms| *ms <= MOST_WINDOW_MS);
    ms.map(Duration::from_millis).ok_or("expected a whole number of milliseconds, 0 to 1000")
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;

    use super::*;
    use crate::cursor::CursorFault;

    fn parse(query: &str) -> Result<Wish, Problem> {
        Wish::parse(Audience::Client(ClientId(7)), query)
    }

    #[test]
    fn without_mode_and_cursor_it_is_live_from_now() {
        let wish = parse("deviceId=00000000-0000-0000-0000-000000000009&x=1").unwrap();
        assert_eq!((wish.mode, wish.from, wish.framed), (Mode::Live, From::Now, false));
    }

    #[test]
    fn mode_length_and_cursor_are_read() {
        let wish = parse("mode=window&windowMs=250&cursor=earliest").unwrap();
        let window = Mode::Window(Duration::from_millis(250));
        assert_eq!((wish.mode, wish.from, wish.framed), (window, From::Earliest, true));
        assert_eq!(parse("mode=window").unwrap().mode, Mode::Window(DEFAULT_WINDOW));
        assert_eq!(parse("mode=latest").unwrap().mode, Mode::Latest(DEFAULT_WINDOW));
        assert_eq!(parse("mode=latest&windowMs=0").unwrap().mode, Mode::Latest(Duration::ZERO));
        assert_eq!(parse("cursor=abc").unwrap().from, From::Cursor(Err(CursorFault::Malformed)));
    }

    #[test]
    fn every_fault_is_named() {
        let problem =
            parse("mode=fast&windowMs=2000&deviceId=nope&eventType=x&cursor=").unwrap_err();
        let mut fields: Vec<_> =
            problem.fields().iter().map(|fault| fault.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["cursor", "deviceId", "eventType", "mode", "windowMs"]);
        assert!(parse("windowMs=10").is_err() && parse("mode=live&windowMs=10").is_err());
    }
}
