//! PostgreSQL restarts, freezes, is full, crowded, read-only, or lets nobody in, while devices go on sending.
//!
//! Promised: every event is accepted all the while, and stored exactly once when it is over; nothing becomes a dead
//! letter. What time or an operator of the database mends is waited for, with the reason in `/readyz`. What is wrong
//! with the deployment ends the consumer, with the reason in its log; the next one goes on where it stopped.

use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE};
use pulsestream_e2e::harness::{Engines, Running, start_gateway};
use pulsestream_e2e::process::Process;
use pulsestream_shared::event::EventId;
use pulsestream_shared::testing::wait_for;
use tokio::time::{Instant, sleep_until};

use crate::load::Load;
use crate::own_postgres::{OwnPostgres, PASSWORD};
use crate::support::{Log, Site, postgres_tables};

/// Longer than a statement may take: 30 s.
const FROZEN: Duration = Duration::from_secs(31);
const PARTITIONS: u32 = 4;

/// A gateway, a consumer in a process of its own and devices at work, on a database of their own.
struct Stage {
    database: OwnPostgres,
    site: Site,
    gateway: Running,
    consumer: Process,
    output: tempfile::TempDir,
    load: Load,
}

impl Stage {
    async fn start() -> Self {
        Self::on(OwnPostgres::start().await).await
    }

    async fn on(database: OwnPostgres) -> Self {
        let mut site =
            Site::with(Engines::Servers, &[("DATABASE_URL", &database.url(PASSWORD))]).await;
        site.tables = postgres_tables(&database.admin_url).await;
        let gateway = start_gateway(&site.home).await;
        let output = tempfile::tempdir().expect("a folder");
        let consumer = Process::start_logged("consumer", &site.home.variables, output.path()).await;
        let load = Load::start(&Client::new(&gateway.url, &site.key), PARTITIONS, 2);
        let stage = Self { database, site, gateway, consumer, output, load };
        stage.stores_on().await;
        stage
    }

    /// Waits until more is stored.
    async fn stores_on(&self) {
        let count = async || self.site.tables.count_events().await.expect("a count");
        let before = count().await;
        wait_for("more to be stored", PATIENCE, async || count().await > before).await;
    }

    /// Waits until the consumer says that it waits, and for what.
    async fn waits_for(&self, reason: &str) {
        let consumer = Client::new(&self.consumer.url, "");
        wait_for(&format!("/readyz to say {reason}"), PATIENCE, async || {
            let answer = consumer.get("/readyz").await.expect("an answer");
            let status = answer.body["checks"]["store"]["status"].as_str().unwrap_or_default();
            answer.status == 503 && status.contains(reason)
        })
        .await;
    }

    /// Batches the consumer tried again.
    async fn retries(&self) -> u64 {
        let series = "pulsestream_consumer_retries_total{class=\"store\"}";
        Client::new(&self.consumer.url, "").figure(series).await.expect("a figure")
    }

    /// Waits for the end of the consumer, which says why.
    async fn consumer_ends(&mut self, reason: &str) {
        assert_eq!(self.consumer.ended().await, Some(1));
        let said = self.consumer.stderr();
        let line = said.lines().find(|line| line.contains("nothing is dead-lettered"));
        assert!(line.is_some_and(|line| line.contains(reason)), "{said}");
    }

    /// Another one, with the settings of this moment.
    async fn start_consumer(&mut self) {
        let (variables, output) = (&self.site.home.variables, self.output.path());
        self.consumer = Process::start_logged("consumer", variables, output).await;
    }

    /// Every event was accepted, and is stored exactly once.
    async fn ends_well(mut self) {
        self.consumer.ready().await;
        self.stores_on().await;
        let told = self.load.stop().await;
        assert_eq!(told.iter().find(|told| told.status != 202).map(|told| told.status), None);
        let accepted: Vec<EventId> = told.iter().map(|told| told.id).collect();
        let log = Log::attach(&self.site.home).await;
        self.site.stored_exactly(&accepted, &log).await;
        log.close().await;
        assert_eq!(self.site.tables.buried_records().await.expect("letters"), []);
        assert_eq!(self.consumer.terminate().await, Some(0));
        self.gateway.stop().await;
        self.site.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_ends_in_the_middle_of_batches_and_recovers_costs_nothing() {
    let stage = Stage::start().await;
    for _ in 0..3 {
        stage.database.restart_immediately().await;
        stage.stores_on().await;
    }
    assert!(stage.retries().await >= 3);
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_frozen_longer_than_a_statement_may_take_costs_nothing() {
    let stage = Stage::start().await;
    stage.database.freeze().await;
    let thaw = Instant::now() + FROZEN;
    stage.waits_for("did not answer in time").await;
    sleep_until(thaw).await;
    stage.database.thaw().await;
    stage.stores_on().await;
    assert!(stage.retries().await > 0, "what was under way was tried again");
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_connections_others_have_is_waited_for() {
    let stage = Stage::start().await;
    let crowd = stage.database.crowd().await;
    stage.waits_for("53300").await;
    crowd.leaves(&stage.database).await;
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_space_is_waited_for_and_goes_on_when_there_is_some() {
    let Some(database) = OwnPostgres::on_a_small_disk().await else {
        return eprintln!("not tried: this machine lets nobody mount a small disk");
    };
    let stage = Stage::on(database).await;
    stage.database.fill_disk();
    stage.waits_for("53100").await;
    stage.database.free_disk();
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_became_read_only_is_waited_for_until_it_takes_rows_again() {
    let stage = Stage::start().await;
    stage.database.only_read(true).await;
    stage.waits_for("25006").await;
    stage.database.only_read(false).await;
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_no_longer_right_ends_the_consumer_and_the_right_one_stores_all() {
    let mut stage = Stage::start().await;
    stage.database.run("alter role pulsestream password 'second'").await;
    stage.database.terminate("pulsestream").await;
    stage.consumer_ends("28P01").await;
    let url = stage.database.url("second");
    stage.site.home.variables.insert("DATABASE_URL".into(), url);
    stage.start_consumer().await;
    stage.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_missing_ends_the_consumer_until_it_is_back() {
    let mut stage = Stage::start().await;
    stage.database.run("alter table events rename to elsewhere").await;
    stage.consumer_ends("42P01").await;
    stage.start_consumer().await;
    stage.consumer_ends("42P01").await;
    stage.database.run("alter table elsewhere rename to events").await;
    stage.start_consumer().await;
    stage.ends_well().await;
}
