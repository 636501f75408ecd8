//! The log under a script.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Faults, Method, Struck};
use crate::log::{
    AppendError, AppendResult, Bounds, EventLog, Identity, LogConsumer, LogError, LogEvent,
    LogIdentity, NewRecord, Offset, Partition, ReadLimit, Record, Topic,
};

/// [`EventLog`] that fails as told.
///
/// An append that fails *before* is [`AppendError::Unavailable`], one that fails *after* is
/// [`AppendError::Unknown`], for every record of the batch. [`Method::ConsumerNext`] cannot fail
/// without ending the member, so it fails as [`LogError::Unusable`]; *after* takes one event with it.
pub struct FaultLog {
    inner: Arc<dyn EventLog>,
    faults: Faults,
}

impl FaultLog {
    /// Wraps a log.
    pub fn new(inner: Arc<dyn EventLog>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn fail<T>(struck: Struck) -> Result<T, LogError> {
    Err(LogError::Unavailable(struck.text()))
}

fn append_error(struck: Struck) -> AppendError {
    match struck {
        Struck::Before => AppendError::Unavailable(struck.text()),
        Struck::After => AppendError::Unknown(struck.text()),
    }
}

#[async_trait]
impl EventLog for FaultLog {
    async fn append(&self, topic: Topic, records: Vec<NewRecord>) -> Vec<AppendResult> {
        let count = records.len();
        let call = self.inner.append(topic, records);
        let fail = |struck| vec![Err(append_error(struck)); count];
        self.faults.around(Method::Append, call, fail).await
    }

    fn partitions_fail_alone(&self) -> bool {
        self.inner.partitions_fail_alone()
    }

    async fn consume(&self, group: &str) -> Result<Box<dyn LogConsumer>, LogError> {
        let inner = self.faults.around(Method::Consume, self.inner.consume(group), fail).await?;
        Ok(Box::new(FaultConsumer { inner, faults: self.faults.clone() }))
    }

    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        let call = self.inner.read(topic, partition, from, limit);
        self.faults.around(Method::Read, call, fail).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, LogError> {
        self.faults.around(Method::Bounds, self.inner.bounds(topic), fail).await
    }

    async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError> {
        self.faults.around(Method::Locate, self.inner.locate(logged_at_ms), fail).await
    }
}

struct FaultConsumer {
    inner: Box<dyn LogConsumer>,
    faults: Faults,
}

#[async_trait]
impl LogConsumer for FaultConsumer {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        if let Some(struck) = self.faults.interrupt(Method::ConsumerNext).await {
            if struck == Struck::After {
                self.inner.next().await?;
            }
            return Err(LogError::Unusable(struck.text()));
        }
        self.inner.next().await
    }

    fn seek(&mut self, partition: Partition, offset: Offset) {
        self.inner.seek(partition, offset);
    }

    fn pause(&mut self, partitions: &[Partition]) {
        self.inner.pause(partitions);
    }

    fn resume(&mut self, partitions: &[Partition]) {
        self.inner.resume(partitions);
    }

    fn commit(&mut self, partition: Partition, next: Offset) {
        self.inner.commit(partition, next);
    }

    async fn committed(
        &mut self,
        partitions: &[Partition],
    ) -> Result<Vec<Option<Offset>>, LogError> {
        let call = self.inner.committed(partitions);
        self.faults.around(Method::Committed, call, fail).await
    }
}

/// [`LogIdentity`] that fails as told.
pub struct FaultIdentity {
    inner: Arc<dyn LogIdentity>,
    faults: Faults,
}

impl FaultIdentity {
    /// Wraps the identity of a log.
    pub fn new(inner: Arc<dyn LogIdentity>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl LogIdentity for FaultIdentity {
    async fn identity(&self) -> Result<Identity, LogError> {
        self.faults.around(Method::Identity, self.inner.identity(), fail).await
    }

    async fn renew(&self, seen: Uuid) -> Result<Identity, LogError> {
        self.faults.around(Method::Renew, self.inner.renew(seen), fail).await
    }
}
