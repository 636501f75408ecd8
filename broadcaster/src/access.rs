//! Who may see what, and for how long: an API key, a stream token, or nothing at all with `--dev`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, Uri, header};
use pulsestream_shared::auth::{Keyring, Seal, bearer};
use pulsestream_shared::clock;
use pulsestream_shared::config::Config;
use pulsestream_shared::header_list;
use pulsestream_shared::origins::Origins;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::{KeyRecord, Scope};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::doors::{Arrival, Doors, Inside};
use crate::filter::{Audience, Beyond, Filter};
use crate::open_keys::{OpenKey, OpenKeys};
use crate::origin;
use crate::token::{self, Token};
use crate::wish::Wish;

/// What a WebSocket's client offers as subprotocol to show a token: browsers let it set no header.
pub(crate) const BEARER: &str = "bearer.";

/// By what a request shows who sends it.
pub(crate) enum Shown<'r> {
    Token(Cow<'r, str>),
    /// The headers, which may hold a key.
    Key(&'r HeaderMap),
}

impl<'r> Shown<'r> {
    /// A token counts before a key: it may be restricted, and a proxy may add a key to every request.
    pub(crate) fn by(headers: &'r HeaderMap, query: &'r str) -> Self {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        let in_query = pairs.find_map(|(name, value)| (name == "token").then_some(value));
        let offered = || Some(Cow::Borrowed(subprotocol(headers)?.strip_prefix(BEARER)?));
        let in_header = || bearer(headers).filter(|text| text.starts_with(token::PREFIX));
        let token = in_query.or_else(offered).or_else(|| in_header().map(Cow::Borrowed));
        token.map_or(Self::Key(headers), Self::Token)
    }
}

/// The offered subprotocol that holds a token.
pub(crate) fn subprotocol(headers: &HeaderMap) -> Option<&str> {
    offers(headers).find(|offer| offer.starts_with(BEARER))
}

/// The subprotocols that are offered.
pub(crate) fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    header_list::items(headers, header::SEC_WEBSOCKET_PROTOCOL)
}

/// Whose events may be seen, which of them, and until when.
pub(crate) struct Grant {
    pub(crate) audience: Audience,
    /// The key that says so; none for anonymous reading.
    key: Option<Arc<OpenKey>>,
    /// All that is shown, when it was granted by a token.
    only: Option<Filter>,
    /// When the token is over.
    end: Option<End>,
}

#[derive(Clone, Copy)]
struct End {
    at: Instant,
    at_ms: i64,
}

impl Grant {
    /// Cancelled once the key works no more.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.key.as_ref().map(|key| key.ended.clone()).unwrap_or_default()
    }

    /// What comes first: that moment, or the end of the token.
    pub(crate) fn until(&self, other: Instant) -> Instant {
        self.end.map_or(other, |end| end.at.min(other))
    }

    /// True once the token is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.end.is_some_and(|end| end.at <= now)
    }

    /// When the token is over, unix milliseconds.
    pub(crate) fn expires_at_ms(&self) -> Option<i64> {
        self.end.map(|end| end.at_ms)
    }

    /// The wish, of what is granted alone.
    ///
    /// # Errors
    /// 403 when it names something else.
    pub(crate) fn narrow(&self, wish: Wish) -> Result<Wish, Problem> {
        let Some(only) = &self.only else { return Ok(wish) };
        match wish.filter.narrowed(only) {
            Ok(filter) => Ok(Wish { filter, ..wish }),
            Err(Beyond(what)) => Err(Problem::from(Code::TokenRestricted)
                .detail(format!("the stream token does not allow {what}"))),
        }
    }

    /// True when a subscription with that filter may go on under this grant.
    pub(crate) fn covers(&self, filter: &Filter) -> bool {
        filter.audience == self.audience
            && self.only.as_ref().is_none_or(|only| filter.is_within(only))
    }
}

/// A client that was let in.
pub(crate) struct Admitted {
    pub(crate) grant: Grant,
    /// Counts the stream for as long as it is kept.
    _inside: Inside,
}

impl Admitted {
    pub(crate) fn new(grant: Grant, arrival: Arrival) -> Result<Self, Problem> {
        let inside = arrival.enter(grant.audience, Instant::now())?;
        Ok(Self { grant, _inside: inside })
    }
}

/// Decides who is let in.
pub(crate) struct Access {
    keyring: Arc<Keyring>,
    keys: Arc<OpenKeys>,
    doors: Arc<Doors>,
    origins: Origins,
    seal: Seal,
    dev: bool,
}

impl Access {
    pub(crate) fn new(keyring: Arc<Keyring>, keys: Arc<OpenKeys>, config: &Config) -> Self {
        Self {
            seal: keyring.seal(token::PURPOSE),
            keyring,
            keys,
            doors: Doors::new(&config.live),
            origins: Origins::new(&config.server.cors_origins),
            dev: config.server.dev,
        }
    }

    /// # Errors
    /// 403 for a page that may not open streams here.
    pub(crate) fn check_origin(&self, headers: &HeaderMap, target: &Uri) -> Result<(), Problem> {
        origin::check(&self.origins, headers, target)
    }

    /// # Errors
    /// 429 when the address has as many streams as it may.
    pub(crate) fn arrive(&self, address: IpAddr) -> Result<Arrival, Problem> {
        self.doors.arrive(address)
    }

    /// The key of a request, with that scope.
    ///
    /// # Errors
    /// As [`Keyring::authorize`].
    pub(crate) async fn key(
        &self,
        headers: &HeaderMap,
        scope: Scope,
    ) -> Result<Arc<KeyRecord>, Problem> {
        self.keyring.authorize(headers, scope).await
    }

    /// What is granted to whoever shows this.
    ///
    /// # Errors
    /// 401 without a key and with a key or token that does not work, 403 without the scope, 503 when nobody
    /// can say.
    pub(crate) async fn grant(&self, shown: &Shown<'_>) -> Result<Grant, Problem> {
        match shown {
            Shown::Token(text) => self.grant_by_token(text).await,
            Shown::Key(headers) => match self.key(headers, Scope::EventsRead).await {
                Ok(key) => self.grant_to(&key, None, None).await,
                Err(problem) if self.dev && problem.code() == Code::MissingApiKey => {
                    origin::check_anonymous(headers)?;
                    let audience = Audience::Everybody;
                    Ok(Grant { audience, key: None, only: None, end: None })
                }
                Err(problem) => Err(problem),
            },
        }
    }

    async fn grant_by_token(&self, text: &str) -> Result<Grant, Problem> {
        let token = Token::open(text, &self.seal).ok_or(Code::InvalidToken)?;
        let left_ms = token.expires_at_ms.saturating_sub(clock::unix_ms());
        let left = u64::try_from(left_ms).ok().filter(|left_ms| *left_ms > 0);
        let left = left.map(Duration::from_millis).ok_or_else(|| {
            Problem::from(Code::InvalidToken).detail("the stream token has expired")
        })?;
        let end = Instant::now().checked_add(left);
        let end = end.map(|at| End { at, at_ms: token.expires_at_ms }).ok_or(Code::InvalidToken)?;
        let key = self.keyring.authorize_hash(token.key, Scope::EventsRead).await?;
        if key.client != token.client {
            return Err(Code::InvalidToken.into());
        }
        self.grant_to(&key, Some(token.only), Some(end)).await
    }

    async fn grant_to(
        &self,
        key: &KeyRecord,
        only: Option<Filter>,
        end: Option<End>,
    ) -> Result<Grant, Problem> {
        let open = self.keys.enter(key.hash).await.ok_or(Code::InvalidApiKey)?;
        Ok(Grant { audience: Audience::Client(key.client), key: Some(open), only, end })
    }

    /// A token of that key, of what `only` names, for so long. Its text, and when it is over.
    ///
    /// # Errors
    /// 400 when it would be too long to be carried.
    pub(crate) fn issue(
        &self,
        key: &KeyRecord,
        only: Filter,
        ttl: Duration,
    ) -> Result<(String, i64), Problem> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let expires_at_ms = clock::unix_ms().saturating_add(ttl_ms);
        let token = Token { key: key.hash, client: key.client, expires_at_ms, only };
        let text = token.seal(&self.seal).ok_or_else(|| {
            Problem::from(Code::BadRequest).detail(format!(
                "the token would be longer than {} characters: name fewer devices or types",
                token::MOST_CHARS
            ))
        })?;
        Ok((text, expires_at_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&'static str, &str)], query: &str) -> Option<String> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        match Shown::by(&headers.collect(), query) {
            Shown::Token(text) => Some(text.into_owned()),
            Shown::Key(_) => None,
        }
    }

    #[test]
    fn a_token_comes_in_the_query_as_subprotocol_or_in_a_header_and_counts_before_a_key() {
        let offered = ("sec-websocket-protocol", "pulsestream.v1, bearer.ps_token_b");
        assert_eq!(shown(&[], "mode=live&token=ps_token_%61"), Some("ps_token_a".to_owned()));
        assert_eq!(shown(&[offered], ""), Some("ps_token_b".to_owned()));
        assert_eq!(shown(&[offered], "token=a"), Some("a".to_owned()));
        assert_eq!(shown(&[offered, ("x-api-key", "k")], ""), Some("ps_token_b".to_owned()));
        let bearer = ("authorization", "Bearer ps_token_c");
        assert_eq!(shown(&[bearer], ""), Some("ps_token_c".to_owned()));
        assert_eq!(shown(&[("authorization", "Bearer ps_live_k")], ""), None);
        assert_eq!(shown(&[("x-api-key", "k")], "tokens=1"), None);
        let other = ("sec-websocket-protocol", "pulsestream.v1");
        assert_eq!(shown(&[other], ""), None);
    }
}
