//! Where the real servers are, for tests that need them, and a name of its own for each test.

use uuid::Uuid;

/// Broker list of the Kafka the tests may use.
pub fn kafka_brokers() -> String {
    required("TEST_KAFKA_BROKERS")
}

/// URL of the PostgreSQL database the tests may create databases beside.
pub fn database_url() -> String {
    required("TEST_DATABASE_URL")
}

/// URL of the Redis the tests may use.
pub fn redis_url() -> String {
    required("TEST_REDIS_URL")
}

/// A namespace nobody else uses: topics, groups and keys of one test never meet another's.
pub fn namespace() -> String {
    format!("t{:08x}.", Uuid::new_v4().as_fields().0)
}

#[expect(clippy::disallowed_methods, reason = "tests learn of servers by environment alone")]
fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `scripts/test`, or `eval \"$(scripts/services up)\"` before cargo test"
        )
    })
}
