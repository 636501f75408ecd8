//! Dead letters in the hands of an operator, beside a running pipeline: listed, shown, replayed after a fix and
//! stored once, purged.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Running};
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::binary;
use pulsestream_shared::codec::encode;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::{NewRecord, Topic};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::poison::{accepted, is_conserved, poisons};
use crate::support::{Ended, Log, Site, run};

on_both!(
    a_letter_is_listed_and_shown_and_replayed_after_a_fix_and_stored_once,
    a_purge_removes_only_what_was_named,
    a_letter_that_died_too_often_is_left_out,
    a_letter_on_its_way_waits_for_the_store_and_is_left_alone,
    a_replay_that_is_killed_goes_on_where_it_was,
    a_letter_of_a_conflict_names_what_is_stored,
    a_replayed_event_is_found_by_its_client_and_not_shown_live,
);

/// A consumer on a home, the log, and the command line.
struct Desk {
    site: Site,
    /// Running, unless a test stopped it.
    consumer: Option<Running>,
    log: Log,
    client: ClientId,
    device: Uuid,
}

impl Desk {
    async fn new(engines: Engines) -> Self {
        let site = Site::new(engines).await;
        let consumer = Some(site.consumer().await);
        let log = Log::attach(&site.home).await;
        let client = site.client_number().await;
        Self { site, consumer, log, client, device: Uuid::new_v4() }
    }

    /// Nobody's number, until a backup is restored.
    fn nobody(&self) -> ClientId {
        ClientId(self.client.0.wrapping_add(1))
    }

    async fn partitions(&self) -> u32 {
        self.log.identity().await.partitions
    }

    async fn append(&self, records: Vec<NewRecord>) {
        for result in self.log.port().append(Topic::Raw, records).await {
            result.expect("appended");
        }
    }

    /// Appends events of the number that nobody has; returns their ids.
    async fn append_of_nobody(&self, count: usize) -> Vec<EventId> {
        let partitions = self.partitions().await;
        let events: Vec<_> = (0..count).map(|_| accepted(Uuid::new_v4(), self.nobody())).collect();
        self.append(events.iter().map(|event| encode(event, partitions)).collect()).await;
        self.site.settled(&self.log).await;
        events.iter().map(|event| event.event.id).collect()
    }

    async fn command(&self, arguments: &[&str]) -> Ended {
        run(&[&["dlq"], arguments].concat(), &self.site.home.variables).await
    }

    /// Runs a command that succeeds and prints JSON.
    async fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.command(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        let listed = self.json(&[&["list"], arguments].concat()).await;
        listed.as_array().expect("a list").clone()
    }

    /// What a command that ends with that code says.
    async fn refused(&self, arguments: &[&str], code: i32) -> String {
        let ended = self.command(arguments).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        ended.stderr
    }

    async fn remove(self) {
        self.log.close().await;
        if let Some(consumer) = self.consumer {
            consumer.stop().await;
        }
        self.site.remove().await;
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("no text {field}: {object}"))
}

fn counted(letters: &[Value], field: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for letter in letters {
        *counts.entry(text(letter, field).to_owned()).or_default() += 1;
    }
    counts
}

async fn a_letter_is_listed_and_shown_and_replayed_after_a_fix_and_stored_once(engines: Engines) {
    let desk = Desk::new(engines).await;
    let poisons = poisons(desk.device, desk.client, desk.partitions().await);
    let good = accepted(desk.device, desk.client);
    let mut records: Vec<_> = poisons.iter().map(|(poison, _)| poison.clone()).collect();
    records.push(encode(&good, desk.partitions().await));
    desk.append(records).await;
    desk.site.stored_exactly(&[good.event.id], &desk.log).await;
    repeat_copies(&desk.log).await;

    let all = desk.list(&[]).await;
    let mut reasons = BTreeMap::new();
    poisons.iter().for_each(|(_, reason)| *reasons.entry((*reason).to_owned()).or_default() += 1);
    assert_eq!(counted(&all, "reason"), reasons);
    assert_eq!(counted(&all, "state"), [("dead".to_owned(), poisons.len())].into());
    every_letter_is_shown_as_it_came(&desk, &all, &poisons).await;
    let listed = desk.command(&["list", "--limit", "2"]).await.stdout;
    let total = format!("{} dead letters: 14 malformed, 3 out_of_range", poisons.len());
    assert!(listed.contains(&total) && listed.contains("newest 2"), "{listed}");

    let nobodys = ["--reason", "unknown_client"];
    let letter = &desk.list(&nobodys).await[0];
    let (name, id) = (text(letter, "letter"), text(letter, "id"));
    assert_eq!(letter["clientId"], json!(desk.nobody().0));
    let ends = desk.log.ends().await;
    let dry = desk.json(&["replay", "--reason", "unknown_client", "--dry-run"]).await;
    assert_eq!((&dry["replayed"], &dry["dryRun"]), (&json!(1), &json!(true)));
    assert_eq!(desk.log.ends().await, ends);

    // Too early: it dies again, under its name.
    let replayed = desk.json(&["replay", name]).await;
    assert_eq!(
        (&replayed["replayed"], &replayed["reasons"]),
        (&json!(1), &json!({ "unknown_client": 1 }))
    );
    desk.site.settled(&desk.log).await;
    let again = &desk.list(&nobodys).await[0];
    assert_eq!((text(again, "letter"), text(again, "state")), (name, "dead"));
    assert_eq!(again["deaths"], 2);

    desk.site.tables.restore_client(desk.nobody(), "restored").await.expect("restored");
    desk.json(&["replay", "--reason", "unknown_client", "--device", &desk.device.to_string()])
        .await;
    let id = EventId(id.parse().expect("a UUID"));
    desk.site.stored_exactly(&[good.event.id, id], &desk.log).await;
    assert_eq!(desk.list(&nobodys).await, [Value::Null; 0]);
    let ends = desk.log.ends().await;
    let nothing = desk.json(&["replay", "--reason", "unknown_client"]).await;
    assert_eq!((&nothing["replayed"], &nothing["waiting"]), (&json!(0), &json!(0)));
    assert_eq!(desk.log.ends().await, ends);
    assert!(desk.refused(&["show", name], 1).await.contains("no such dead letter"));

    let others = desk.list(&[]).await;
    assert_eq!(others.len(), poisons.len() - 1, "letters of other reasons stay");
    assert!(others.iter().all(|letter| letter["deaths"] == 1));
    is_conserved(desk.consumer.as_ref().expect("a consumer"), poisons.len() + 3, poisons.len() + 1)
        .await;
    desk.remove().await;
}

/// Each copy once more, and one that no row ever named: what a transaction that was rolled back leaves.
async fn repeat_copies(log: &Log) {
    let again = log.records(Topic::Dlq).await.into_iter().map(|copy| NewRecord {
        partition: copy.partition,
        key: copy.key,
        value: copy.value,
        headers: copy.headers,
        outcomes: Vec::new(),
    });
    let mut again: Vec<_> = again.collect();
    again.extend(again.first().cloned().map(|copy| NewRecord { value: "stray".into(), ..copy }));
    for result in log.port().append(Topic::Dlq, again).await {
        result.expect("appended");
    }
}

async fn every_letter_is_shown_as_it_came(
    desk: &Desk,
    letters: &[Value],
    poisons: &[crate::poison::Poison],
) {
    let mut left: Vec<_> = poisons.iter().map(|(poison, reason)| (poison, *reason)).collect();
    for letter in letters {
        let shown = desk.json(&["show", text(letter, "letter")]).await;
        assert_eq!(shown["reason"], letter["reason"]);
        let copy = &shown["copy"];
        let place = left.iter().position(|(poison, reason)| {
            let key = poison.key.as_deref().map(told).unwrap_or_default();
            let headers = poison.headers.iter();
            let headers =
                headers.map(|(name, value)| json!({ "name": name, "value": value.map(told) }));
            copy["bytes"] == told(&poison.value)
                && copy["key"] == key
                && copy["headers"] == json!(headers.collect::<Vec<_>>())
                && shown["reason"] == *reason
        });
        left.remove(place.unwrap_or_else(|| panic!("not what came: {shown}")));
    }
    let text = desk.command(&["show", text(&letters[0], "letter")]).await.stdout;
    for told in ["letter ", "died once", "dlq.error", "received-at", "bytes ("] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

fn told(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

async fn a_purge_removes_only_what_was_named(engines: Engines) {
    let desk = Desk::new(engines).await;
    let other = Uuid::new_v4();
    let partitions = desk.partitions().await;
    for device in [desk.device, other] {
        let poisons = poisons(device, desk.client, partitions);
        desk.append(poisons.into_iter().map(|(poison, _)| poison).collect()).await;
    }
    desk.site.settled(&desk.log).await;
    let before = desk.list(&[]).await;
    assert_eq!(before.len(), 36);

    assert!(desk.refused(&["purge"], 64).await.contains("--all"));
    let named = ["purge", "--reason", "out_of_range", "--device", &desk.device.to_string()];
    assert!(desk.refused(&named, 64).await.contains("--yes"));
    assert!(desk.refused(&["purge", "--reason", "odd"], 64).await.contains("unknown_client"));
    assert!(desk.refused(&["list", "--since", "odd"], 64).await.contains("24h"));
    assert!(desk.refused(&["purge", "9-99", "--yes"], 1).await.contains("no such dead letter"));
    let dry = desk.json(&[&named[..], &["--dry-run"]].concat()).await;
    assert_eq!((&dry["found"], &dry["purged"]), (&json!(3), &json!(0)));
    assert_eq!(desk.list(&[]).await, before);

    let one = text(&before[0], "letter");
    assert_eq!(desk.json(&["purge", one, "--yes"]).await["purged"], 1);
    let left: Vec<_> = before.iter().filter(|letter| text(letter, "letter") != one).collect();
    assert_eq!(desk.list(&[]).await.iter().collect::<Vec<_>>(), left);

    let is_named = |letter: &&Value| {
        letter["reason"] == "out_of_range" && letter["deviceId"] == json!(desk.device)
    };
    let (gone, left): (Vec<_>, Vec<_>) = left.into_iter().partition(is_named);
    let purged = desk.json(&[&named[..], &["--yes"]].concat()).await;
    assert_eq!(purged["purged"], json!(gone.len()));
    assert_eq!(desk.list(&[]).await.iter().collect::<Vec<_>>(), left);
    assert_eq!(desk.list(&["--since", "1h"]).await.len(), left.len());
    assert_eq!(desk.list(&["--since", "2199-01-01T00:00:00Z"]).await.len(), 0);
    assert_eq!(desk.list(&["--client", "tenant", "--max-attempts", "1"]).await.len(), 0);

    let all = desk.command(&["purge", "--all", "--yes"]).await;
    assert!(all.stdout.starts_with(&format!("purged {} dead letters:", left.len())), "{all:?}");
    assert_eq!(desk.command(&["list"]).await.stdout, "no dead letters\n");
    desk.remove().await;
}

async fn a_letter_that_died_too_often_is_left_out(engines: Engines) {
    let desk = Desk::new(engines).await;
    desk.append_of_nobody(1).await;
    for deaths in 1..5 {
        let letters = desk.list(&[]).await;
        assert_eq!((letters.len(), &letters[0]["deaths"]), (1, &json!(deaths)));
        assert_eq!(desk.json(&["replay"]).await["replayed"], 1);
        desk.site.settled(&desk.log).await;
    }
    let tired = desk.json(&["replay"]).await;
    assert_eq!((&tired["replayed"], &tired["tooManyAttempts"]), (&json!(0), &json!(1)));
    let told = desk.command(&["replay"]).await.stdout;
    assert!(told.contains("--max-attempts"), "{told}");
    assert_eq!(desk.list(&["--max-attempts", "5"]).await.len(), 0);
    assert_eq!(desk.json(&["replay", "--max-attempts", "6"]).await["replayed"], 1);
    desk.site.settled(&desk.log).await;
    assert_eq!(desk.list(&[]).await[0]["deaths"], 6);
    let name = text(&desk.list(&[]).await[0], "letter").to_owned();
    assert_eq!(desk.json(&["replay", &name]).await["replayed"], 1, "named, it is meant");
    desk.site.settled(&desk.log).await;
    assert_eq!(desk.list(&[]).await[0]["deaths"], 7);
    desk.remove().await;
}

async fn a_letter_on_its_way_waits_for_the_store_and_is_left_alone(engines: Engines) {
    let mut desk = Desk::new(engines).await;
    let ids = desk.append_of_nobody(3).await;
    desk.site.tables.restore_client(desk.nobody(), "restored").await.expect("restored");
    desk.consumer.take().expect("a consumer").stop().await;

    assert_eq!(desk.json(&["replay", "--limit", "2"]).await["replayed"], 2);
    let states = counted(&desk.list(&[]).await, "state");
    assert_eq!(states, [("replayed".to_owned(), 2), ("dead".to_owned(), 1)].into());
    let ends = desk.log.ends().await;
    let again = desk.json(&["replay", "--dry-run"]).await;
    assert_eq!((&again["replayed"], &again["waiting"]), (&json!(1), &json!(2)));
    assert_eq!(desk.log.ends().await, ends);
    let purge = desk.json(&["purge", "--all", "--yes"]).await;
    assert_eq!((&purge["purged"], &purge["waiting"]), (&json!(1), &json!(2)));

    desk.consumer = Some(desk.site.consumer().await);
    desk.site.settled(&desk.log).await;
    let stored = desk.site.stored_ids().await;
    assert!(stored.len() == 2 && stored.iter().all(|id| ids.contains(id)), "{stored:?}");
    assert_eq!(desk.list(&[]).await, [Value::Null; 0]);
    desk.remove().await;
}

async fn a_replay_that_is_killed_goes_on_where_it_was(engines: Engines) {
    const LETTERS: usize = 2_500;
    let desk = Desk::new(engines).await;
    let ids = desk.append_of_nobody(LETTERS).await;
    desk.site.tables.restore_client(desk.nobody(), "restored").await.expect("restored");
    let end = async || desk.log.ends().await.iter().sum::<i64>();
    for _ in 0..3 {
        let before = end().await;
        let mut command = tokio::process::Command::new(binary());
        command.args(["dlq", "replay"]).env_clear().envs(&desk.site.home.variables);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut replay = command.kill_on_drop(true).spawn().expect("it runs");
        tokio::select! {
            () = wait_for("some replays", PATIENCE, async || end().await > before) => {}
            ended = replay.wait() => drop(ended.expect("a child")),
        }
        if replay.try_wait().expect("a child").is_none() {
            replay.kill().await.expect("killed");
        }
    }
    let last = desk.json(&["replay"]).await;
    assert_eq!(last["failed"], 0, "{last}");
    desk.site.stored_exactly(&ids, &desk.log).await;
    assert_eq!(desk.list(&[]).await, [Value::Null; 0]);
    let replays = usize::try_from(end().await).expect("a count") - LETTERS;
    assert!((LETTERS..2 * LETTERS).contains(&replays), "{replays} replays");
    is_conserved(desk.consumer.as_ref().expect("a consumer"), LETTERS + replays, LETTERS).await;
    desk.remove().await;
}

async fn a_letter_of_a_conflict_names_what_is_stored(engines: Engines) {
    let desk = Desk::new(engines).await;
    let first = accepted(desk.device, desk.client);
    let mut other = first.clone();
    other.event.value += 1.0;
    let partitions = desk.partitions().await;
    desk.append(vec![encode(&first, partitions), encode(&other, partitions)]).await;
    desk.site.stored_exactly(&[first.event.id], &desk.log).await;

    let id = first.event.id.to_string();
    let shown = desk.json(&["show", &id]).await;
    assert_eq!((text(&shown, "reason"), text(&shown, "client")), ("id_conflict", "tenant"));
    assert_eq!(shown["stored"]["value"], json!(first.event.value));
    assert_eq!(shown["stored"]["deviceId"], json!(desk.device));
    let bytes = text(&shown["copy"]["bytes"], "text");
    assert!(bytes.contains(&other.event.value.to_string()), "{bytes}");
    let told = desk.command(&["show", &id]).await.stdout;
    assert!(told.contains("stored ") && told.contains("tenant"), "{told}");

    desk.json(&["replay", &id]).await;
    desk.site.stored_exactly(&[first.event.id], &desk.log).await;
    let letters = desk.list(&[]).await;
    assert_eq!((letters.len(), &letters[0]["deaths"]), (1, &json!(2)));
    desk.remove().await;
}

async fn a_replayed_event_is_found_by_its_client_and_not_shown_live(engines: Engines) {
    // Else the replay would be dropped as a repeat of what was not shown either.
    let short = ("PULSESTREAM__LIVE__REPEAT_WINDOW", "10ms");
    let pipeline = Harness::new(engines).set(short.0, short.1).start().await;
    let (device, nobody) = (pipeline.devices[0], ClientId(77));
    let dead = accepted(device, nobody);
    let record = encode(&dead, pipeline.engine().partitions);
    let appended = pipeline.engine().log.append(Topic::Raw, vec![record]).await;
    assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    let variables = &pipeline.home.variables;
    let tables = pipeline.home.tables().await;
    wait_for("a letter", PATIENCE, async || {
        !tables.buried_records().await.expect("letters").is_empty()
    })
    .await;
    tables.restore_client(nobody, "restored").await.expect("restored");
    let created = run(&["keys", "create", "--client", "restored"], variables).await;
    let key = created.stdout.trim().to_owned();
    let client = Client::new(pipeline.gateway_url(), &key);
    let path = format!("/v1/events/{}", dead.event.id);
    let status = async || {
        let answer = client.send(|http, url| http.get(format!("{url}{path}"))).await;
        answer.expect("an answer").body["data"]["status"].clone()
    };
    assert_eq!(status().await, "dead-lettered");
    let mut dashboard =
        Dashboard::connect(pipeline.stream_url(), &key, "").await.expect("connected");

    let replayed = run(&["dlq", "replay", "--client", "restored"], variables).await;
    assert_eq!(replayed.stdout, "replayed 1 dead letter: 1 unknown_client\n", "{replayed:?}");
    wait_for("the event", PATIENCE, async || status().await == "stored").await;
    // Of the same device, so behind the replay in the log.
    let answer = client.post(Uuid::new_v4(), &event(device, 99.0)).await.expect("an answer");
    assert_eq!(answer.status, 202);
    assert_eq!(dashboard.next().await["value"], 99, "the replay is not shown");
    assert!(dashboard.next_within(Duration::from_millis(200)).await.is_none());
    pipeline.stop().await;
}
