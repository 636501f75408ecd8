//! Members with a name, which a restart does not end.

use std::time::Instant;

use super::*;
use crate::log::LogError;

under_both_protocols!(
    a_named_member_that_restarts_keeps_its_partitions_and_disturbs_nobody,
    a_named_member_that_stays_away_is_missed_after_the_session_timeout,
    of_two_members_of_one_name_the_older_ends,
);

const SESSION: Duration = Duration::from_secs(6);

/// A process of that name.
fn named(name: &str, common: &KafkaConfig) -> KafkaConfig {
    KafkaConfig { group_instance_id: name.to_owned(), ..common.clone() }
}

/// Two processes and what each was assigned, which is half.
struct Pair {
    common: KafkaConfig,
    logs: [KafkaLog; 2],
    members: [Box<dyn LogConsumer>; 2],
    owned: [Vec<Partition>; 2],
}

impl Pair {
    async fn join(rebalance_protocol: RebalanceProtocol) -> Self {
        let common = KafkaConfig { rebalance_protocol, session_timeout: SESSION, ..config(4) };
        migrate(&common).await.unwrap();
        let logs = [open(&named("first", &common)).await, open(&named("second", &common)).await];
        let mut members =
            [logs[0].consume(GROUP).await.unwrap(), logs[1].consume(GROUP).await.unwrap()];
        let mut owned = [Vec::new(), Vec::new()];
        while owned.iter().any(|owned| owned.len() != 2) {
            let [first, second] = &mut members;
            let (which, event) = tokio::select! {
                event = next(&mut **first) => (0, event),
                event = next(&mut **second) => (1, event),
            };
            assert!(follow(&mut owned[which], &event), "{event:?} without a place");
        }
        owned.iter_mut().for_each(|owned| owned.sort_unstable());
        Self { common, logs, members, owned }
    }

    /// Ends the first process as SIGTERM does.
    async fn first_ends(
        self,
    ) -> (KafkaConfig, KafkaLog, Box<dyn LogConsumer>, [Vec<Partition>; 2]) {
        let Self { common, logs: [first, second], members: [leaving, staying], owned } = self;
        drop(leaving);
        assert!(first.close(PATIENCE).await);
        (common, second, staying, owned)
    }
}

async fn a_named_member_that_restarts_keeps_its_partitions_and_disturbs_nobody(
    protocol: RebalanceProtocol,
) {
    let pair = Pair::join(protocol).await;
    let (common, log, mut staying, owned) = pair.first_ends().await;
    owned[1].iter().for_each(|&partition| staying.seek(partition, 0));

    let again = open(&named("first", &common)).await;
    let mut back = again.consume(GROUP).await.unwrap();
    let ended = Instant::now();
    assert_eq!(assigned(&mut *back).await, owned[0]);
    assert!(ended.elapsed() < SESSION, "{:?}", ended.elapsed());
    // Nothing but records came to the other one, then and for as long as it takes to miss a member.
    while ended.elapsed() < SESSION + SESSION / 2 {
        fill(&log, owned[1][0], 1).await;
        records(&mut *staying, 1).await;
    }
    back.seek(owned[0][0], 0);
    fill(&log, owned[0][0], 1).await;
    assert_eq!(records(&mut *back, 1).await[0].partition, owned[0][0]);
}

async fn a_named_member_that_stays_away_is_missed_after_the_session_timeout(
    protocol: RebalanceProtocol,
) {
    let pair = Pair::join(protocol).await;
    let (_, _log, mut staying, owned) = pair.first_ends().await;
    let ended = Instant::now();
    let mut all = owned[1].clone();
    while all.len() < 4 {
        follow(&mut all, &next(&mut *staying).await);
    }
    let missed = ended.elapsed();
    assert!((SESSION / 2..2 * SESSION).contains(&missed), "{missed:?}");
}

async fn of_two_members_of_one_name_the_older_ends(protocol: RebalanceProtocol) {
    let common = KafkaConfig { rebalance_protocol: protocol, ..config(2) };
    let older = made(named("same", &common)).await;
    let mut member = older.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    let newer = open(&named("same", &common)).await;
    let mut same = newer.consume(GROUP).await.unwrap();
    assert_eq!(assigned(&mut *same).await, [0, 1]);
    let end = async {
        loop {
            match member.next().await {
                Ok(LogEvent::Revoked(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert!(
        matches!(&error, LogError::Unusable(why) if why.contains("group_instance_id")),
        "{error}"
    );
    same.seek(0, 0);
    fill(&newer, 0, 1).await;
    records(&mut *same, 1).await;
}

#[tokio::test]
async fn a_member_of_another_protocol_waits_until_the_others_are_gone() {
    let eager = config(2);
    let cooperative =
        KafkaConfig { rebalance_protocol: RebalanceProtocol::Cooperative, ..eager.clone() };
    let log = made(eager).await;
    let mut member = log.consume(GROUP).await.unwrap();
    assert_eq!(assigned(&mut *member).await, [0, 1]);
    member.seek(0, 0);
    let newer = open(&cooperative).await;
    let mut waiting = newer.consume(GROUP).await.unwrap();
    assert!(silent(&mut *waiting, Duration::from_secs(3)).await);
    fill(&log, 0, 1).await;
    assert_eq!(records(&mut *member, 1).await[0].partition, 0, "nobody is disturbed");
    drop(member);
    assert_eq!(assigned(&mut *waiting).await, [0, 1]);
}
