//! Whether this Redis still knows every key it was given: a sentinel key tells. (Redis Sentinel, which
//! fails servers over, is another thing.)
//!
//! A Redis loses keys in two ways. It is emptied (`FLUSHALL`): then the sentinel is gone. Or another process
//! answers, a restarted one with nothing, with what its disk had, or a replica with what had reached it:
//! then the sentinel, if it is there, names another process. Whoever finds either puts the sentinel back and
//! a mark beside it, in one script and by the server's clock, so that all gateways go by one time.
//!
//! **The look** stands behind the locks in the same pipeline and costs it two commands, however many locks
//! it has. Behind, because a key acquired after a loss is then followed by a look that finds the sentinel
//! gone, or the mark of whoever put it back.
//!
//! **The check**, a script that asks for the process, is made once a connection: a process ends its
//! connections when it ends. The connection is given a name in the check's own pipeline, one nobody else
//! knows. A look that finds this name went over the connection that was checked.

use std::str;
use std::sync::{Mutex, PoisonError};

use redis::{Pipeline, Value};

use super::link::Link;
use super::{millis, unexpected};
use crate::cache::{CacheError, LOCK_LIFE};

/// Answers the server process and, unless all is well since [`LOCK_LIFE`], when keys were lost.
const CHECK: &str = "local run=string.match(redis.call('INFO','server'),'run_id:(%x+)') \
    if redis.call('GET',KEYS[1])~=run then local t=redis.call('TIME') \
    redis.call('SET',KEYS[2],string.format('%.0f',t[1]*1000+math.floor(t[2]/1000)),'PX',ARGV[1]) \
    redis.call('SET',KEYS[1],run) end \
    return {run,redis.call('GET',KEYS[2])}";

/// Takes back a mark, if it still is that of the time given.
const ABSOLVE: &str =
    "if redis.call('GET',KEYS[1])==ARGV[1] then return redis.call('DEL',KEYS[1]) end return 0";

/// Commands of a look.
pub(super) const LOOK_COMMANDS: usize = 2;

/// The two keys.
pub(super) struct Sentinel {
    /// Names the process that has known every key since it was written.
    sentinel: Vec<u8>,
    /// When keys were lost, unix milliseconds; dies when those keys would have.
    mark: Vec<u8>,
}

/// A link, and what the last check over it found.
pub(super) struct Checked {
    pub(super) link: Link,
    known: Mutex<Option<Known>>,
    /// One check at a time, or names and findings of two would cross.
    turn: tokio::sync::Mutex<()>,
}

struct Known {
    connection: String,
    process: Vec<u8>,
}

impl Checked {
    pub(super) fn new(link: Link) -> Self {
        Self { link, known: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    fn is_known(&self, connection: &[u8], process: &[u8]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().is_some_and(|known| {
            known.connection.as_bytes() == connection && known.process == process
        })
    }
}

impl Sentinel {
    /// The keys under these names.
    pub(super) fn new(sentinel: Vec<u8>, mark: Vec<u8>) -> Self {
        Self { sentinel, mark }
    }

    /// Puts a look at the end of a pipeline.
    pub(super) fn look(&self, pipeline: &mut Pipeline) {
        pipeline.cmd("MGET").arg(&self.sentinel).arg(&self.mark);
        pipeline.cmd("CLIENT").arg("GETNAME");
    }

    /// When keys were lost, by the values of a look over this link; makes the check if it is due.
    pub(super) async fn read(
        &self,
        found: Vec<Value>,
        checked: &Checked,
    ) -> Result<Option<i64>, CacheError> {
        let [Value::Array(keys), name]: [Value; LOOK_COMMANDS] =
            found.try_into().map_err(|_| CacheError("Redis answered no look".to_owned()))?
        else {
            return Err(CacheError("Redis answered a look with something else".to_owned()));
        };
        match (keys.as_slice(), name) {
            ([Value::BulkString(process), mark], Value::BulkString(name))
                if checked.is_known(&name, process) =>
            {
                lost_at(mark)
            }
            (_, Value::ServerError(error)) => Err(unexpected(Value::ServerError(error))),
            _ => self.check(checked).await,
        }
    }

    /// Asks which process this is and whether it knows every key; marks that it does not. Answers when
    /// keys were lost.
    pub(super) async fn check(&self, checked: &Checked) -> Result<Option<i64>, CacheError> {
        let _turn = checked.turn.lock().await;
        let connection = format!("pulsestream-{:016x}", rand::random::<u64>());
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("CLIENT").arg("SETNAME").arg(&connection);
        pipeline.cmd("EVAL").arg(CHECK).arg(2).arg(&self.sentinel).arg(&self.mark);
        pipeline.arg(millis(LOCK_LIFE));
        let answers = checked.link.call(&pipeline).await.map_err(CacheError)?;
        let [Value::Okay, Value::Array(told)] = answers.as_slice() else {
            let refused = answers.into_iter().find(|value| matches!(value, Value::ServerError(_)));
            return Err(unexpected(refused.unwrap_or(Value::Nil)));
        };
        let [Value::BulkString(process), mark] = told.as_slice() else {
            return Err(CacheError("Redis does not tell its run_id".to_owned()));
        };
        let known = Known { connection, process: process.clone() };
        *checked.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        lost_at(mark)
    }

    /// Forgets that keys were lost at that time.
    pub(super) async fn absolve(&self, at_ms: i64, link: &Link) -> Result<(), CacheError> {
        let mut absolve = redis::cmd("EVAL");
        absolve.arg(ABSOLVE).arg(1).arg(&self.mark).arg(at_ms);
        link.call_one(absolve).await.map(drop).map_err(CacheError)
    }
}

fn lost_at(mark: &Value) -> Result<Option<i64>, CacheError> {
    match mark {
        Value::Nil => Ok(None),
        Value::BulkString(digits) => {
            let at_ms = str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
            at_ms.map(Some).ok_or_else(|| CacheError("the mark of a loss is no time".to_owned()))
        }
        _ => Err(CacheError("the mark of a loss is of another kind".to_owned())),
    }
}

#[cfg(test)]
mod tests;
