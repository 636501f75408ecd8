//! Reads and questions outside any group.
//!
//! A few threads, made when first needed, each with a client of its own, take one job at a time. A
//! reader that just read a partition up to a place is preferred for the read that goes on there: what
//! it fetched ahead is then used instead of thrown away. More jobs than readers wait in order.

use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::KafkaConfig;
use super::client::{self, Quiet, REQUEST_TIMEOUT, unavailable};
use super::record::{Batch, Pieces};
use crate::log::{Bounds, LogError, Offset, Partition, ReadLimit, Record};

/// Threads and clients that read, at most.
const READERS: usize = 4;
/// The same for questions; when a broker hangs one of them waits for it.
const ASKERS: usize = 2;
/// How long a job may wait for a reader and run, together.
const JOB_TIMEOUT: Duration = Duration::from_secs(8);
/// A job that failed sooner than this is run again,
const QUICK: Duration = Duration::from_secs(2);
/// after this long.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a reader waits for the read that goes on where the last one ended. At the end of the log its client asks
/// for more a hundred times a second meanwhile: a second of that for each look at the log's identity was half of what an
/// idle broadcaster costs.
const LINGER: Duration = Duration::from_millis(100);
/// An idle reader serves its client's log lines this often.
const IDLE: Duration = Duration::from_secs(1);
/// How long one read waits for records that must be there.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Everyone there is. A broker answers a connection in order, so behind the fetch of one that reads, which waits
/// for records, each question would wait 10 ms: questions go to others.
pub(super) struct Readers {
    settings: ClientConfig,
    reading: Pool,
    asking: Pool,
}

struct Pool {
    permits: Arc<Semaphore>,
    /// Most recently used last.
    idle: Arc<Idle>,
}

type Idle = Mutex<Vec<IdleReader>>;

struct IdleReader {
    jobs: mpsc::SyncSender<Job>,
    at: Option<Position>,
}

/// Where a reader's next record comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    topic: String,
    partition: Partition,
    next: Offset,
}

/// What a topic looks like to the brokers.
pub(super) struct TopicState {
    /// The broker that leads each partition, by partition number; negative where none does.
    pub(super) leaders: Vec<i32>,
}

impl TopicState {
    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.leaders.len()).unwrap_or(u32::MAX)
    }

    /// Every partition has a leader.
    pub(super) fn led(&self) -> bool {
        !self.leaders.is_empty() && self.leaders.iter().all(|leader| *leader >= 0)
    }
}

type Work = Box<dyn FnOnce(&mut Reader) + Send>;

/// A job, and what lets the reader be used again afterwards, even if the caller went away.
struct Job {
    work: Work,
    permit: OwnedSemaphorePermit,
    /// The way to the reader itself, for the idle list: a reader that held one always would never end.
    jobs: mpsc::SyncSender<Job>,
}

impl Readers {
    /// None yet.
    pub(super) fn new(config: &KafkaConfig) -> Arc<Self> {
        let mut settings = client::fetching(config);
        settings
            // Asked for by the client library to assign partitions; nothing ever joins this group.
            .set("group.id", format!("{}pulsestream-reader", config.namespace))
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "10")
            .set("queued.min.messages", "5000")
            .set("queued.max.messages.kbytes", "4096");
        Arc::new(Self { settings, reading: Pool::of(READERS), asking: Pool::of(ASKERS) })
    }

    /// See [`crate::log::EventLog::read`].
    pub(super) async fn read(
        &self,
        topic: &str,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        let from = Position { topic: topic.to_owned(), partition, next: from.max(0) };
        let wanted = from.clone();
        self.run(Some(&wanted), move |reader| reader.read(from.clone(), limit)).await
    }

    /// First and next offset of the given partitions, in order.
    pub(super) async fn bounds(
        &self,
        topic: &str,
        partitions: Vec<Partition>,
    ) -> Result<Vec<Bounds>, LogError> {
        let topic = topic.to_owned();
        self.run(None, move |reader| {
            let firsts = reader.offsets(&topic, &partitions, Place::Beginning)?;
            let nexts = reader.offsets(&topic, &partitions, Place::End)?;
            let pairs = firsts.into_iter().zip(nexts);
            pairs
                .map(|pair| match pair {
                    (Some(first), Some(next)) => Ok(Bounds { first, next: next.max(first) }),
                    _ => Err(unavailable(format!("{topic}: a partition told no offsets"))),
                })
                .collect()
        })
        .await
    }

    /// Offset of the first record at or after a time, else the next one.
    pub(super) async fn locate(
        &self,
        topic: &str,
        partitions: Vec<Partition>,
        logged_at_ms: i64,
    ) -> Result<Vec<Offset>, LogError> {
        let topic = topic.to_owned();
        self.run(None, move |reader| {
            // The end is asked first: a record that comes between is then found, not skipped.
            let nexts = reader.offsets(&topic, &partitions, Place::End)?;
            let at = Place::Offset(logged_at_ms.max(0));
            let found = reader.offsets(&topic, &partitions, at)?;
            let pairs = found.into_iter().zip(nexts);
            pairs
                .map(|(found, next)| {
                    found.or(next).ok_or_else(|| unavailable("a partition told no offset"))
                })
                .collect()
        })
        .await
    }

    /// What the brokers know of a topic; `None` when there is no such topic.
    pub(super) async fn topic(&self, topic: &str) -> Result<Option<TopicState>, LogError> {
        let topic = topic.to_owned();
        self.run(None, move |reader| reader.topic(&topic)).await
    }

    /// Runs a job on the reader that stands at the wanted place or any other, a question on one that asks.
    /// A job that fails at once is run again for a while: a leader that just moved, or a topic just made,
    /// answers soon.
    async fn run<T: Send + 'static>(
        &self,
        wanted: Option<&Position>,
        work: impl Fn(&mut Reader) -> Result<T, LogError> + Clone + Send + 'static,
    ) -> Result<T, LogError> {
        let started = Instant::now();
        loop {
            let job = self.run_once(wanted, work.clone());
            let result = tokio::time::timeout(JOB_TIMEOUT, job).await;
            match result.unwrap_or_else(|_| Err(unavailable("the brokers did not answer in time")))
            {
                Err(LogError::Unavailable(cause)) if started.elapsed() < QUICK => {
                    tracing::debug!(cause, "asking again");
                    tokio::time::sleep(AGAIN).await;
                }
                result => return result,
            }
        }
    }

    async fn run_once<T: Send + 'static>(
        &self,
        wanted: Option<&Position>,
        work: impl FnOnce(&mut Reader) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let pool = if wanted.is_some() { &self.reading } else { &self.asking };
        let permits = Arc::clone(&pool.permits);
        let permit = permits.acquire_owned().await.map_err(unavailable)?;
        let jobs = pool.checkout(wanted).map_or_else(|| self.start(pool), Ok)?;
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |reader| {
            if !reply.is_closed() {
                // A caller that goes away meanwhile needs no answer.
                drop(reply.send(work(reader)));
            }
        });
        let job = Job { work, permit, jobs: jobs.clone() };
        jobs.send(job).map_err(|_| unavailable("a reader ended"))?;
        answer.await.map_err(unavailable)?
    }

    /// A new one; the permit says that there is room.
    fn start(&self, pool: &Pool) -> Result<mpsc::SyncSender<Job>, LogError> {
        let settings = self.settings.clone();
        let idle = Arc::downgrade(&pool.idle);
        // One job at a time is ever sent: its sender is out of the idle list until it is done.
        let (jobs, incoming) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(move || serve(&settings, &incoming, &idle))
            .map_err(unavailable)?;
        Ok(jobs)
    }
}

impl Pool {
    fn of(count: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(count)), idle: Arc::default() }
    }

    /// One that is idle: the one that stands there, or the one that is longest.
    fn checkout(&self, wanted: Option<&Position>) -> Option<mpsc::SyncSender<Job>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let matching =
            idle.iter().position(|reader| wanted.is_some() && reader.at.as_ref() == wanted);
        let index = matching.or_else(|| (!idle.is_empty()).then_some(0))?;
        Some(idle.remove(index).jobs)
    }
}

/// A reader's thread: jobs until the pool is gone.
fn serve(settings: &ClientConfig, jobs: &mpsc::Receiver<Job>, idle: &Weak<Idle>) {
    let consumer = match BaseConsumer::from_config_and_context(settings, Quiet) {
        Ok(consumer) => consumer,
        // The waiting job is dropped with its channel, which its caller sees as an answer.
        Err(error) => return tracing::warn!(%error, "a reader could not be made"),
    };
    let mut reader = Reader { consumer, at: None, pieces: Pieces::default() };
    loop {
        match jobs.recv_timeout(if reader.at.is_some() { LINGER } else { IDLE }) {
            Ok(Job { work, permit, jobs }) => {
                work(&mut reader);
                let Some(idle) = idle.upgrade() else { return };
                let at = reader.at.clone();
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(IdleReader { jobs, at });
                drop(permit);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => reader.rest(),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One client and where it stands.
struct Reader {
    consumer: BaseConsumer<Quiet>,
    at: Option<Position>,
    pieces: Pieces,
}

impl Reader {
    fn read(&mut self, from: Position, limit: ReadLimit) -> Result<Vec<Record>, LogError> {
        let deadline = Instant::now() + READ_TIMEOUT;
        if self.at.as_ref() != Some(&from) {
            let Some(from) = self.inside(from)? else { return Ok(Vec::new()) };
            self.stand_at(from)?;
        } else if let Some(records) = self.ready(limit) {
            return Ok(records);
        } else if self.inside(from)?.is_none() {
            return Ok(Vec::new());
        }
        self.gather(limit, deadline)
    }

    /// What was fetched ahead, when there is any.
    fn ready(&mut self, limit: ReadLimit) -> Option<Vec<Record>> {
        let records = self.gather(limit, Instant::now()).ok()?;
        (!records.is_empty()).then_some(records)
    }

    /// The place within the log's bounds; `None` when nothing is there to read now.
    fn inside(&self, from: Position) -> Result<Option<Position>, LogError> {
        let bounds = self.consumer.fetch_watermarks(&from.topic, from.partition, REQUEST_TIMEOUT);
        let (first, next) = bounds.map_err(unavailable)?;
        let place = from.next.max(first);
        Ok((place < next).then_some(Position { next: place, ..from }))
    }

    fn stand_at(&mut self, place: Position) -> Result<(), LogError> {
        self.at = None;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&place.topic, place.partition, Place::Offset(place.next))
            .and_then(|()| self.consumer.assign(&list))
            .map_err(unavailable)?;
        self.at = Some(place);
        Ok(())
    }

    /// Takes records from where the reader stands: waits for the first until the deadline, for none of
    /// the others.
    fn gather(&mut self, limit: ReadLimit, deadline: Instant) -> Result<Vec<Record>, LogError> {
        let Some(at) = &mut self.at else { return Ok(Vec::new()) };
        let mut batch = Batch::default();
        while batch.len() < limit.records && batch.value_bytes() < limit.bytes {
            let patience = if batch.len() == 0 {
                deadline.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match self.consumer.poll(patience) {
                Some(Ok(message))
                    if message.partition() == at.partition && message.offset() >= at.next =>
                {
                    at.next = message.offset() + 1;
                    batch.push(&message, &mut self.pieces);
                }
                // A compressed batch is handed out whole, with what lies below the place.
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == at.partition => {
                    break;
                }
                Some(Err(error)) if is_out_of_range(&error) => {
                    // Retention passed us between the question and the fetch.
                    self.at = None;
                    break;
                }
                Some(Err(error)) => tracing::debug!(%error, "a read met an error; waiting"),
                None if batch.len() > 0 => break,
                // Not an empty answer: that would say that there is nothing to read.
                None if Instant::now() >= deadline => {
                    return Err(unavailable("no record came in time"));
                }
                None => {}
            }
        }
        Ok(batch.finish())
    }

    /// One question to all leaders: an offset for each partition, in order.
    fn offsets(
        &self,
        topic: &str,
        partitions: &[Partition],
        at: Place,
    ) -> Result<Vec<Option<Offset>>, LogError> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition_offset(topic, partition, at).map_err(unavailable)?;
        }
        let list = self.consumer.offsets_for_times(list, REQUEST_TIMEOUT).map_err(unavailable)?;
        let offset = |&partition: &Partition| {
            let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
            found.error().map_err(unavailable)?;
            match found.offset() {
                Place::Offset(offset) => Ok(Some(offset)),
                _ => Ok(None),
            }
        };
        partitions.iter().map(offset).collect()
    }

    fn topic(&self, topic: &str) -> Result<Option<TopicState>, LogError> {
        let metadata =
            self.consumer.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(unavailable)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(None);
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Ok(None);
            }
            Some(code) => return Err(unavailable(format!("topic {topic}: {code}"))),
        }
        let mut leaders: Vec<_> = found.partitions().iter().map(|p| (p.id(), p.leader())).collect();
        leaders.sort_unstable();
        Ok(Some(TopicState { leaders: leaders.into_iter().map(|(_, leader)| leader).collect() }))
    }

    /// Lets go of the partition, so that nothing is fetched for nobody, and serves log lines.
    fn rest(&mut self) {
        if self.at.take().is_some()
            && let Err(error) = self.consumer.unassign()
        {
            tracing::debug!(%error, "a reader could not let go of its partition");
        }
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            drop(event);
        }
    }
}

fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(
        client::code(error),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}
