//! Whether a Redis server can keep idempotency locks: asked once, before the first of them is written.

use redis::Value;

use super::link::Link;

/// Oldest usable version: the first whose `SET` takes `NX` and `GET` together.
const OLDEST_MAJOR: u32 = 7;

/// Why a Redis cannot be the cache. Somebody must act; waiting does not help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CacheOpenError {
    /// The URL means nothing to the client.
    #[error("REDIS_URL cannot be used: {0}")]
    Url(String),
    /// The server lacks what the locks need.
    #[error("Redis {0} is too old: version 7.0 or newer is needed (SET with NX and GET together)")]
    TooOld(String),
    /// The server forgets keys when memory is short.
    #[error(
        "Redis evicts keys (maxmemory-policy {0}): set noeviction, or accepted events could be \
         accepted twice once its memory is full"
    )]
    Evicts(String),
    /// Keys of one call would lie on several servers.
    #[error(
        "this Redis is a node of a Redis Cluster: locks need one primary (replicas with Sentinel or a \
         managed failover are fine)"
    )]
    Cluster,
    /// The server would not tell.
    #[error("Redis does not tell about itself ({0}): allow the INFO command")]
    Silent(String),
}

/// Asks the server; the outer error means that it did not answer.
pub(super) async fn judge(link: &Link) -> Result<Result<(), CacheOpenError>, String> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("INFO");
    Ok(match link.call(&pipeline).await?.pop() {
        Some(Value::BulkString(text)) => judge_info(&String::from_utf8_lossy(&text)),
        Some(Value::VerbatimString { text, .. }) => judge_info(&text),
        Some(Value::ServerError(error)) => {
            Err(CacheOpenError::Silent(redis::RedisError::from(error).to_string()))
        }
        other => Err(CacheOpenError::Silent(format!("it answered {other:?}"))),
    })
}

/// INFO says all of it, so CONFIG, which managed servers forbid, is not needed.
fn judge_info(info: &str) -> Result<(), CacheOpenError> {
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let version =
        field("redis_version").ok_or_else(|| CacheOpenError::Silent("no version".to_owned()))?;
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < OLDEST_MAJOR) {
        return Err(CacheOpenError::TooOld(version.to_owned()));
    }
    if field("cluster_enabled") == Some("1") {
        return Err(CacheOpenError::Cluster);
    }
    match field("maxmemory_policy") {
        Some("noeviction") => Ok(()),
        Some(policy) => Err(CacheOpenError::Evicts(policy.to_owned())),
        None => Err(CacheOpenError::Silent("no maxmemory_policy".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\ncluster_enabled:0\r\n";

    #[test]
    fn only_a_recent_single_server_that_never_evicts_is_fit() {
        assert_eq!(judge_info(GOOD), Ok(()));
        assert_eq!(
            judge_info(&GOOD.replace("7.0.15", "6.2.14")),
            Err(CacheOpenError::TooOld("6.2.14".to_owned()))
        );
        assert_eq!(
            judge_info(&GOOD.replace("noeviction", "allkeys-lru")),
            Err(CacheOpenError::Evicts("allkeys-lru".to_owned()))
        );
        assert_eq!(
            judge_info(&GOOD.replace("enabled:0", "enabled:1")),
            Err(CacheOpenError::Cluster)
        );
        assert!(matches!(judge_info(""), Err(CacheOpenError::Silent(_))));
    }
}
