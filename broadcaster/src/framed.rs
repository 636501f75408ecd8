//! What the client of a framed WebSocket says, and what it is answered: any number of subscriptions, each
//! with its own filter, rhythm and cursor.

use std::sync::Arc;

use pulsestream_shared::problem::{Code, Problem};
use serde_json::Value;

use crate::access::Shown;
use crate::commands::{Auth, Command, Fault};
use crate::dialect::Dialect;
use crate::frames;
use crate::socket::Socket;
use crate::wish::Wish;

/// Subscriptions of one connection.
const SUBSCRIPTIONS: usize = 32;

impl Socket {
    /// Does what the client says, and what it is answered; `None` when that is no command.
    pub(crate) async fn obey(&mut self, text: &str) -> Option<String> {
        match Command::parse(self.admitted.grant.audience, text) {
            Err(Fault::NoCommand) => None,
            Err(Fault::Refused { id, code, detail }) => Some(frames::error(&id, code, &detail)),
            Ok(Command::Ping { id }) => Some(frames::pong(&id)),
            Ok(Command::Unsubscribe { id, sub }) => Some(if self.subs.remove(&sub) {
                frames::ok(&id)
            } else {
                frames::error(&id, "unknown_subscription", "there is none of that name")
            }),
            Ok(Command::Auth(Auth { id, token })) => Some(match self.renew(token.expose()).await {
                Ok(expires_at_ms) => frames::authorized(&id, expires_at_ms),
                Err(problem) => refused(&id, &problem),
            }),
            Ok(Command::Subscribe { id, sub, wish }) => {
                if self.subs.has(&sub) {
                    let detail = "there is one of that name; unsubscribe it first";
                    return Some(frames::error(&id, "subscribed_already", detail));
                }
                if self.subs.len() >= SUBSCRIPTIONS {
                    let detail = format!("a connection has at most {SUBSCRIPTIONS}");
                    return Some(frames::error(&id, "too_many_subscriptions", &detail));
                }
                Some(match self.subscribe(&id, sub, *wish).await {
                    Ok(answer) => answer,
                    Err(problem) => refused(&id, &problem),
                })
            }
        }
    }

    async fn subscribe(
        &mut self,
        id: &Value,
        sub: Arc<str>,
        wish: Wish,
    ) -> Result<String, Problem> {
        let wish = self.admitted.grant.narrow(wish)?;
        let start = self.stream.judge(&wish, "framed").await?;
        let answer = frames::subscribed(id, &sub, &start);
        self.add(Dialect::Framed(sub), wish, start);
        Ok(answer)
    }

    /// Goes on by another token; without a change when that does not allow what is shown now. Says until
    /// when.
    async fn renew(&mut self, token: &str) -> Result<Option<i64>, Problem> {
        let grant = self.stream.access.grant(&Shown::Token(token.into())).await?;
        if grant.audience != self.admitted.grant.audience {
            let detail = "the stream token is of another client than this connection";
            return Err(Problem::from(Code::TokenRestricted).detail(detail));
        }
        if let Some((sub, _)) = self.subs.filters().find(|(_, filter)| !grant.covers(filter)) {
            let detail = format!("the stream token does not allow all of {sub:?}");
            return Err(Problem::from(Code::TokenRestricted).detail(detail));
        }
        self.admitted.grant = grant;
        Ok(self.admitted.grant.expires_at_ms())
    }
}

fn refused(id: &Value, problem: &Problem) -> String {
    frames::error(id, problem.code().as_str(), problem.text())
}
