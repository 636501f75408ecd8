//! What a limit tells a client: `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers),
//! `Retry-After`, and the sentence of a refusal.
//!
//! `q` events in `w` seconds is the rate, always told for one second; `r` is what may be sent at once,
//! which after a pause is the burst and may exceed `q`; `t` is when more is there.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use pulsestream_shared::bucket::Rate;
use pulsestream_shared::openapi::Header;
use pulsestream_shared::problem::{Code, Problem};

use super::{Quota, Refusal, Whose, Why};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Both, as the API's description tells them. A 202 has them when its key has a limit.
pub(crate) const TOLD: [Header; 2] = [
    Header {
        name: "RateLimit-Policy",
        about: "Whose limit (`\"key\"` or `\"device\"`), and its `q` events in `w` seconds.",
        always: false,
        example: "\"key\";q=100;w=1",
        whole: false,
    },
    Header {
        name: "RateLimit",
        about: "`r` events may be sent at once; more are there in `t` seconds.",
        always: false,
        example: "\"key\";r=0;t=1",
        whole: false,
    },
];

impl Whose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Device => "device",
        }
    }
}

impl Quota {
    /// Tells what is left.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        for (name, value) in told(Whose::Key, self.rate, self.left, 1) {
            headers.insert(name, value);
        }
    }
}

impl From<Refusal> for Problem {
    /// 429 when waiting helps, 413 when only a smaller batch does: a client that waits and repeats must
    /// not do so for ever.
    fn from(refusal: Refusal) -> Self {
        let Refusal { whose, rate, why } = refusal;
        let (name, burst) = (whose.as_str(), rate.burst());
        match why {
            Why::TooSoon(wait) => {
                let seconds = u32::try_from(wait.as_nanos().div_ceil(1_000_000_000));
                let seconds = seconds.unwrap_or(u32::MAX).max(1);
                let detail = format!(
                    "the {name} may send {} events per second and {burst} at once",
                    rate.per_second()
                );
                told(whose, rate, 0, seconds)
                    .into_iter()
                    .fold(Self::from(Code::QuotaExceeded), |problem, (name, value)| {
                        problem.header(name, value)
                    })
                    .detail(detail)
                    .retry_after(seconds)
            }
            Why::TooMany => Self::from(Code::PayloadTooLarge)
                .detail(format!("the {name} may send at most {burst} events at once")),
        }
    }
}

fn told(whose: Whose, rate: Rate, left: u32, seconds: u32) -> Vec<(HeaderName, HeaderValue)> {
    let name = whose.as_str();
    let policy = HeaderValue::from_str(&format!("\"{name}\";q={};w=1", rate.per_second()));
    let state = HeaderValue::from_str(&format!("\"{name}\";r={left};t={seconds}"));
    // Both are ASCII without control characters.
    policy.into_iter().map(|v| (POLICY, v)).chain(state.into_iter().map(|v| (STATE, v))).collect()
}
