//! The cache on Redis (>= 7.0) or Valkey.
//!
//! ```text
//! key                          value                         life
//! NAMESPACE i CLIENT(4) ID(16) a lock record, 36 bytes       24 h from the first attempt
//! NAMESPACE k HASH(32)         "E" + the entry of an API key as put
//! NAMESPACE k HASH(32)         "R": revoked a moment ago     as marked
//! NAMESPACE q LIMIT            two doubles: debt in events,  until it has drained
//!                              microsecond it was true at
//! NAMESPACE s                  run id of the server process  for ever
//! NAMESPACE f                  when keys were lost, unix ms  24 h
//! ```
//!
//! Locks are answered together with whether keys were lost ([`sentinel`]).
//!
//! A call is one pipeline on one of a few shared connections, never a pool: a pool hands a connection to
//! one task at a time, so that calls could not share a write. Locks are plain `SET NX GET PX`; only what
//! must look first (takeover, release, an entry against a revoke mark, the debt of a limit) is a script,
//! because a script costs the server eight times as much. Scripts are sent whole (`EVAL`): by hash, a
//! server that forgot them would answer in the middle of an ordered pipeline.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Pipeline, RedisError, Value};

use super::{
    Cache, CacheError, CachedKey, Charge, LOCK_LIFE, LockChange, LockKey, LockRecord, LockReply,
    LockRequest, Locked,
};
use crate::bucket::Debt;
use crate::clock::unix_ms;
use crate::store::KeyHash;

mod fitness;
pub(crate) mod link;
mod sentinel;

pub use fitness::CacheOpenError;
use link::Link;
use sentinel::{Checked, LOOK_COMMANDS, Sentinel};

/// Compares and replaces or deletes; the key's life stays as it is.
const SWAP: &str = "if redis.call('GET',KEYS[1])~=ARGV[1] then return 0 end \
    if ARGV[2]=='' then redis.call('DEL',KEYS[1]) else redis.call('SET',KEYS[1],ARGV[2],'KEEPTTL') end \
    return 1";

/// Puts an entry unless the revoke mark is there.
const PUT_KEY: &str = "if redis.call('GETRANGE',KEYS[1],0,0)=='R' then return 0 end \
    redis.call('SET',KEYS[1],ARGV[1],'PX',ARGV[2]) return 1";

/// Drains a debt by the server's clock, the one clock that all gateways share, adds to it and answers it
/// in billionths of an event.
const CHARGE: &str = "local t=redis.call('TIME') local now=t[1]*1000000+t[2] \
    local per_second,most,debt=tonumber(ARGV[1]),tonumber(ARGV[2]),0 \
    local kept=redis.call('GET',KEYS[1]) \
    if kept then local owed,at=struct.unpack('<dd',kept) \
    debt=math.max(0,owed-math.max(0,now-at)*per_second/1000000) end \
    debt=math.min(debt+ARGV[3],most) \
    redis.call('SET',KEYS[1],struct.pack('<dd',debt,now),'PX',math.ceil(debt*1000/per_second)+1) \
    return string.format('%.0f',debt*1000000000)";

/// Arguments of the longest `SET` of a lock, and their bytes beside the namespace.
const SET_ARGS: usize = 7;
const SET_BYTES: usize = 80;

const ENTRY: u8 = b'E';
const REVOKED: u8 = b'R';

/// Where the Redis is and how long it may take.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `redis://[user:password@]host[:port][/db]`.
    pub url: String,
    /// Put before every key, so that pipelines can share a server.
    pub namespace: String,
    /// Connections to spread calls over; 2 are enough to keep one server busy.
    pub connections: usize,
    /// After which a call fails; 100 ms.
    pub timeout: Duration,
}

/// [`Cache`] on Redis.
pub struct RedisCache {
    links: Vec<Checked>,
    turn: AtomicUsize,
    namespace: Vec<u8>,
    sentinel: Sentinel,
    fit: AtomicBool,
}

impl RedisCache {
    /// Prepares the connections and asks the server whether it is fit. A server that does not answer is
    /// no error: a gateway starts without Redis, and is asked again by the first call that reaches it.
    ///
    /// # Errors
    /// [`CacheOpenError`]: this server, or this URL, cannot be used; somebody must act.
    pub async fn open(config: RedisConfig) -> Result<Self, CacheOpenError> {
        let url_error = |error: RedisError| CacheOpenError::Url(error.to_string());
        let client = link::client(&config.url).map_err(url_error)?;
        let links = (0..config.connections.max(1))
            .map(|_| Link::new(client.clone(), config.timeout).map(Checked::new))
            .map(|link| link.map_err(url_error))
            .collect::<Result<_, _>>()?;
        let namespace = config.namespace.into_bytes();
        let sentinel = Sentinel::new(named(&namespace, b's', &[]), named(&namespace, b'f', &[]));
        let cache = Self {
            links,
            turn: AtomicUsize::new(0),
            namespace,
            sentinel,
            fit: AtomicBool::new(false),
        };
        match cache.judge().await {
            Ok(verdict) => verdict?,
            Err(error) => tracing::warn!(%error, "redis does not answer; starting without it"),
        }
        Ok(cache)
    }

    async fn judge(&self) -> Result<Result<(), CacheOpenError>, String> {
        let verdict = fitness::judge(&self.link().link).await?;
        self.fit.store(verdict.is_ok(), Ordering::Relaxed);
        Ok(verdict)
    }

    /// Asks whether keys were lost less than [`LOCK_LIFE`] ago: when, unix milliseconds.
    ///
    /// # Errors
    /// [`CacheError`]: nothing is known.
    pub async fn forgot_at_ms(&self) -> Result<Option<i64>, CacheError> {
        self.sentinel.check(self.link()).await
    }

    /// Takes back that keys were lost at that time: there were none.
    ///
    /// # Errors
    /// [`CacheError`]: harmless, the store looks closer than it has to.
    pub async fn absolve(&self, forgot_at_ms: i64) -> Result<(), CacheError> {
        self.sentinel.absolve(forgot_at_ms, &self.link().link).await
    }

    /// The next link, to a server that has been found fit.
    async fn fit_link(&self) -> Result<&Checked, CacheError> {
        if !self.fit.load(Ordering::Relaxed) {
            let verdict = self.judge().await.map_err(CacheError)?;
            verdict.map_err(|misfit| CacheError(misfit.to_string()))?;
        }
        Ok(self.link())
    }

    async fn call(&self, pipeline: &Pipeline) -> Result<Vec<Value>, CacheError> {
        self.fit_link().await?.link.call(pipeline).await.map_err(CacheError)
    }

    async fn call_one(&self, command: Cmd) -> Result<Value, CacheError> {
        self.fit_link().await?.link.call_one(command).await.map_err(CacheError)
    }

    fn link(&self) -> &Checked {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.links[turn % self.links.len()]
    }

    fn lock_key(&self, key: LockKey) -> Vec<u8> {
        named(&self.namespace, b'i', &key.to_bytes())
    }

    fn api_key(&self, hash: &KeyHash) -> Vec<u8> {
        named(&self.namespace, b'k', &hash.0)
    }

    /// `SET` of a lock record, with room for all that may follow: begun empty, a command is moved five times while it
    /// grows, and every event takes two.
    fn set_lock(&self, key: LockKey, record: &LockRecord) -> Cmd {
        let mut set = Cmd::with_capacity(SET_ARGS, SET_BYTES + self.namespace.len());
        set.arg("SET").arg(self.lock_key(key)).arg(&record.to_bytes()[..]);
        set
    }

    fn change_command(&self, change: &LockChange, now_ms: i64) -> Cmd {
        match change {
            LockChange::Finish(key, record) => {
                let mut set = self.set_lock(*key, record);
                // Not KEEPTTL: had the key just expired, it would be written for ever.
                set.arg("PX").arg(remaining_life_ms(record, now_ms));
                set
            }
            LockChange::Swap { key, expected, record } => {
                let replacement = record.map(|record| record.to_bytes());
                let mut swap = redis::cmd("EVAL");
                swap.arg(SWAP).arg(1).arg(self.lock_key(*key)).arg(&expected.to_bytes()[..]);
                swap.arg(replacement.as_ref().map_or(&[][..], |bytes| &bytes[..]));
                swap
            }
        }
    }
}

fn named(namespace: &[u8], kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(namespace.len() + 1 + rest.len());
    name.extend_from_slice(namespace);
    name.push(kind);
    name.extend_from_slice(rest);
    name
}

#[async_trait]
impl Cache for RedisCache {
    async fn lock(&self, requests: &[LockRequest]) -> Result<Locked, CacheError> {
        if requests.is_empty() {
            return Ok(Locked { replies: Vec::new(), forgot_at_ms: None });
        }
        let mut pipeline = Pipeline::with_capacity(requests.len() + LOOK_COMMANDS);
        for request in requests {
            let Some(record) = &request.record else {
                pipeline.cmd("GET").arg(self.lock_key(request.key));
                continue;
            };
            pipeline.add_command(self.set_lock(request.key, record));
            pipeline.arg("NX").arg("GET").arg("PX").arg(millis(LOCK_LIFE));
        }
        self.sentinel.look(&mut pipeline);
        let checked = self.fit_link().await?;
        let mut values = checked.link.call(&pipeline).await.map_err(CacheError)?;
        expect_count(&values, requests.len() + LOOK_COMMANDS)?;
        let look = values.split_off(requests.len());
        let replies =
            requests.iter().zip(values).map(|(request, value)| lock_reply(request, value));
        let replies = replies.collect::<Result<_, _>>()?;
        Ok(Locked { replies, forgot_at_ms: self.sentinel.read(look, checked).await? })
    }

    async fn settle(&self, changes: &[LockChange]) -> Result<Vec<bool>, CacheError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let now_ms = unix_ms();
        let mut pipeline = Pipeline::with_capacity(changes.len());
        for change in changes {
            pipeline.add_command(self.change_command(change, now_ms));
        }
        let values = self.call(&pipeline).await?;
        expect_count(&values, changes.len())?;
        values.into_iter().map(took_place).collect()
    }

    async fn key(&self, hash: &KeyHash) -> Result<Option<CachedKey>, CacheError> {
        let mut get = redis::cmd("GET");
        get.arg(self.api_key(hash));
        match self.call_one(get).await? {
            Value::Nil => Ok(None),
            Value::BulkString(mut bytes) => match bytes.first() {
                Some(&ENTRY) => Ok(Some(CachedKey::Entry(bytes.split_off(1)))),
                Some(&REVOKED) => Ok(Some(CachedKey::Revoked)),
                _ => Err(CacheError("the entry of an API key is of another make".to_owned())),
            },
            other => Err(unexpected(other)),
        }
    }

    async fn put_key(
        &self,
        hash: &KeyHash,
        entry: &[u8],
        life: Duration,
    ) -> Result<(), CacheError> {
        let mut marked = Vec::with_capacity(1 + entry.len());
        marked.push(ENTRY);
        marked.extend_from_slice(entry);
        let mut put = redis::cmd("EVAL");
        put.arg(PUT_KEY).arg(1).arg(self.api_key(hash)).arg(marked).arg(millis(life));
        took_place(self.call_one(put).await?).map(|_put| ())
    }

    async fn revoke_key(&self, hash: &KeyHash, life: Duration) -> Result<(), CacheError> {
        let mut set = redis::cmd("SET");
        set.arg(self.api_key(hash)).arg(&[REVOKED][..]).arg("PX").arg(millis(life));
        took_place(self.call_one(set).await?).map(|_set| ())
    }

    async fn charge(&self, charges: &[Charge]) -> Result<Vec<Debt>, CacheError> {
        if charges.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(charges.len());
        for Charge { limit, rate, events } in charges {
            let most = rate.most_debt().0 / Debt::of(1).0;
            let name = named(&self.namespace, b'q', limit.as_bytes());
            pipeline.cmd("EVAL").arg(CHARGE).arg(1).arg(name);
            pipeline.arg(rate.per_second()).arg(most).arg(*events);
        }
        let values = self.call(&pipeline).await?;
        expect_count(&values, charges.len())?;
        values.into_iter().map(debt).collect()
    }
}

fn debt(value: Value) -> Result<Debt, CacheError> {
    let Value::BulkString(digits) = value else { return Err(unexpected(value)) };
    let number = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
    number.map(Debt).ok_or_else(|| CacheError("the debt of a limit is no number".to_owned()))
}

/// What is left of a key's day, judged by the clock that set its first attempt (a gateway's), so that
/// the server's clock does not matter. At least 1 ms: Redis refuses 0.
fn remaining_life_ms(record: &LockRecord, now_ms: i64) -> i64 {
    let life_ms = millis(LOCK_LIFE);
    record.first_at_ms.saturating_add(life_ms).saturating_sub(now_ms).clamp(1, life_ms)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn lock_reply(request: &LockRequest, value: Value) -> Result<LockReply, CacheError> {
    match value {
        Value::Nil if request.record.is_none() => Ok(LockReply::Free),
        Value::Nil => Ok(LockReply::Acquired),
        Value::BulkString(bytes) => {
            LockRecord::from_bytes(&bytes).map(LockReply::Held).ok_or_else(|| {
                let key = request.key;
                CacheError(format!(
                    "what Redis holds for event {} of client {} ({} bytes) is no lock record",
                    key.id,
                    key.client,
                    bytes.len()
                ))
            })
        }
        other => Err(unexpected(other)),
    }
}

fn took_place(value: Value) -> Result<bool, CacheError> {
    match value {
        Value::Okay => Ok(true),
        Value::Int(count) => Ok(count == 1),
        other => Err(unexpected(other)),
    }
}

fn expect_count(values: &[Value], count: usize) -> Result<(), CacheError> {
    if values.len() == count {
        return Ok(());
    }
    Err(CacheError(format!("Redis gave {} answers to {count} commands", values.len())))
}

fn unexpected(value: Value) -> CacheError {
    CacheError(match value {
        Value::ServerError(error) => RedisError::from(error).to_string(),
        _ => "Redis gave an answer of another kind".to_owned(),
    })
}

#[cfg(test)]
mod tests;
