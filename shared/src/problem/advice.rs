//! What the caller should do about each problem, in the words of the API's description.

use super::Code;

impl Code {
    /// What to do, a sentence or two. Whatever is not said to be worth repeating is not.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::InvalidJson => "Correct the sender: `detail` says where the text breaks off.",
            Self::ValidationFailed => {
                "Correct every field that `errors` names, then send it again; the same key is still free. \
                 A timestamp outside the window means that the clock is wrong or the event too old to be \
                 taken."
            }
            Self::MissingIdempotencyKey => {
                "Make a UUID for each event, keep it with the event, and send it with every attempt."
            }
            Self::InvalidIdempotencyKey => {
                "Send one UUID in hyphenated form; a structured-field string in quotes is fine too."
            }
            Self::MissingApiKey => "Send `x-api-key`, or `Authorization: Bearer KEY`.",
            Self::InvalidApiKey => "Use a key that works; do not repeat the request with this one.",
            Self::InvalidToken => {
                "Get a new token from `POST /v1/stream/tokens` and come again with it."
            }
            Self::Forbidden => "Use a key that has the scope `detail` names.",
            Self::TokenRestricted => {
                "Ask for what the token names or for less, or get one that names more."
            }
            Self::OriginRefused => {
                "The operator lists the origins of pages that may come in `server.cors_origins`."
            }
            Self::NotFound => "Nothing of yours is known under this name. Do not repeat.",
            Self::MethodNotAllowed => "Use one of the methods that `Allow` names.",
            Self::RequestTimeout => {
                "Send the same again, on a new connection: the body stalled or was too slow."
            }
            Self::InProgress => {
                "Wait `Retry-After` seconds and send the same again: an attempt with this key is under way."
            }
            Self::PayloadTooLarge => {
                "Send less at once: `detail` names the limit. The same again would be refused again."
            }
            Self::UnsupportedMediaType => {
                "Correct `Content-Type` or `Content-Encoding`; `detail` names what is taken."
            }
            Self::IdempotencyMismatch => {
                "Another body was sent with this key before, and that one counts. Send this one with a key of \
                 its own."
            }
            Self::BatchInvalid => {
                "Correct the events that `results` names, and send them under other ids."
            }
            Self::QuotaExceeded => {
                "Wait `Retry-After` seconds and send the same again; `RateLimit` tells whose limit it is."
            }
            Self::TooManyStreams => {
                "Close streams you do not need, or wait `Retry-After` seconds and come again."
            }
            Self::BadRequest => {
                "Correct what `errors` or `detail` names. A cursor goes with the filters and the order it came \
                 from."
            }
            Self::Overloaded => {
                "Nothing was done. Wait `Retry-After` seconds and send the same again."
            }
            Self::LogUnavailable => {
                "Nothing was accepted. Wait `Retry-After` seconds and send the same again, with the same key."
            }
            Self::OutcomeUnknown => {
                "The event may be in the log. Wait `Retry-After` seconds and send the same again, with the \
                 same key: it is stored once."
            }
            Self::Unavailable => {
                "Something behind this server does not answer. Wait `Retry-After` seconds and send the same \
                 again."
            }
            Self::QueryTimeout => "Ask for a shorter span or for one device.",
            Self::Starting => "Wait `Retry-After` seconds and send the same again.",
        }
    }
}
