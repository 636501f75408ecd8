//! Conflation: of what waits, the newest of each device and type.
//!
//! Newest is the event with the greatest timestamp; of equal ones the one that was logged later. A client
//! judges the same way, so what it shows depends on which events it was sent and not on how they were cut
//! into writes: sending one more often, or after a newer one, changes nothing.
//!
//! Nothing waits for one subscription alone: what a slow one has not been sent lies in its group's queue, in
//! the ring or in the log, and is looked through when its socket takes something again. So there is no
//! state here, and no bound but that of what is looked through at once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use pulsestream_shared::event::{ClientId, DeviceId};
use pulsestream_shared::log::Offset;
use serde::Deserialize;

use crate::parcel::Parcel;
use crate::range::LiveEvent;

/// The newest events of these parcels, in the order in which they came, behind the place of the last;
/// `None` when there is no parcel. Those who are shown the same share it.
pub(crate) fn conflate(parcels: &[Arc<Parcel>]) -> Option<Arc<Parcel>> {
    let (first, last) = (parcels.first()?, parcels.last()?);
    if !parcels.iter().all(|parcel| parcel.shared) {
        return Some(Arc::new(newest(parcels, last)));
    }
    Some(last.conflated(first.seq, || newest(parcels, last).shared()))
}

fn newest(parcels: &[Arc<Parcel>], last: &Parcel) -> Parcel {
    let events: Vec<_> = parcels.iter().flat_map(|parcel| &parcel.events).collect();
    let mut kept: HashMap<(ClientId, DeviceId, &Bytes), (Age, usize)> = HashMap::new();
    for (index, event) in events.iter().enumerate() {
        let (key, age) = ((event.client, event.device, &event.event_type), Age::of(event));
        let known = kept.entry(key).or_insert((age, index));
        if age > known.0 {
            *known = (age, index);
        }
    }
    let mut indexes: Vec<_> = kept.into_values().map(|(_, index)| index).collect();
    indexes.sort_unstable();
    let left_out = events.len() - indexes.len();
    let left = indexes.into_iter().filter_map(|index| events.get(index)).copied().cloned();
    last.newest(left.collect(), left_out)
}

/// How new an event is among those of its device and type, which lie in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    timestamp_ms: i64,
    offset: Offset,
}

impl Age {
    fn of(event: &LiveEvent) -> Self {
        #[derive(Deserialize)]
        struct Timed {
            timestamp: i64,
        }
        // It was read when it was decoded; what cannot be read again would be older than all that can.
        let timed = serde_json::from_slice(&event.json);
        let timestamp_ms = timed.map_or(i64::MIN, |timed: Timed| timed.timestamp);
        Self { timestamp_ms, offset: event.offset }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use pulsestream_shared::log::Partition;
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::cursor::Cursor;
    use crate::range::tests::event;

    const PARTITIONS: usize = 2;
    const DEVICES: u8 = 3;

    #[derive(Debug, Clone)]
    enum Op {
        /// An event is logged: of a device, of one of two types, at that time.
        Log(u8, bool, i64),
        /// So many events of a partition come, in one parcel.
        Come(usize, usize),
        /// What came is sent.
        Write,
        /// What came is on its way, and the connection breaks after so many events of it.
        Break(usize),
        /// The connection breaks, and the client goes on from its cursor.
        ComeBack,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            6 => (0..DEVICES, any::<bool>(), 0..5_i64)
                .prop_map(|(device, cpu, timestamp_ms)| Op::Log(device, cpu, timestamp_ms)),
            5 => (0..PARTITIONS, 1..4_usize).prop_map(|(partition, count)| Op::Come(partition, count)),
            3 => Just(Op::Write),
            1 => (0..4_usize).prop_map(Op::Break),
            1 => Just(Op::ComeBack),
        ];
        prop::collection::vec(op, 1..80)
    }

    type Key = (DeviceId, Bytes);
    type View = BTreeMap<Key, (i64, Offset)>;

    /// Its time and its place, read apart from what is tested.
    fn told(event: &LiveEvent) -> (i64, Offset) {
        let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
        (json["timestamp"].as_i64().unwrap(), event.offset)
    }

    /// As a client is told to: what is not older than what it shows replaces it.
    fn show(view: &mut View, events: &[LiveEvent]) {
        for event in events {
            let new = told(event);
            let shown = view.entry((event.device, event.event_type.clone())).or_insert(new);
            if new.0 >= shown.0 {
                *shown = new;
            }
        }
    }

    struct World {
        log: [Vec<LiveEvent>; PARTITIONS],
        /// Taken in, and not sent.
        came: Vec<Arc<Parcel>>,
        place: Cursor,
        view: View,
        cursor: Cursor,
        /// Of what broke off, the client may show more than its cursor says.
        ahead: Cursor,
    }

    impl World {
        fn new() -> Self {
            let start = Cursor { epoch: Uuid::nil(), next: [0; PARTITIONS].into() };
            let (place, cursor, ahead) = (start.clone(), start.clone(), start);
            Self { log: [vec![], vec![]], came: vec![], place, view: View::new(), cursor, ahead }
        }

        fn run(&mut self, op: &Op) {
            match op {
                Op::Log(device, cpu, timestamp_ms) => self.log(*device, *cpu, *timestamp_ms),
                Op::Come(partition, count) => self.come(*partition, *count),
                Op::Write => {
                    let Some(newest) = conflate(&self.came) else { return };
                    show(&mut self.view, &newest.events);
                    self.cursor = Cursor::clone(&newest.place);
                    self.came.clear();
                    self.check();
                }
                Op::Break(count) => {
                    let Some(newest) = conflate(&self.came) else { return };
                    show(&mut self.view, &newest.events[..newest.events.len().min(*count)]);
                    self.ahead = self.ahead.later(&newest.place);
                    self.run(&Op::ComeBack);
                }
                Op::ComeBack => {
                    self.came.clear();
                    self.place = self.cursor.clone();
                }
            }
        }

        fn log(&mut self, device: u8, cpu: bool, timestamp_ms: i64) {
            let records = &mut self.log[usize::from(device) % PARTITIONS];
            let offset = Offset::try_from(records.len()).unwrap();
            records.push(LiveEvent {
                device: DeviceId(Uuid::from_u128(device.into())),
                event_type: Bytes::from_static(if cpu { b"cpu" } else { b"mem" }),
                json: format!("{{\"timestamp\":{timestamp_ms}}}").into(),
                ..event(offset, 1)
            });
        }

        fn come(&mut self, partition: usize, count: usize) {
            let number = Partition::try_from(partition).unwrap();
            let from = usize::try_from(self.place.at(number)).unwrap();
            let events: Vec<_> =
                self.log[partition].iter().skip(from).take(count).cloned().collect();
            let Some(last) = events.last() else { return };
            self.place = self.place.with(number, last.offset + 1);
            let at = (self.came.len() as u64, Instant::now());
            let parcel = Parcel::new(at, number, events, Arc::new(self.place.clone()));
            self.came.push(Arc::new(if count == 1 { parcel.shared() } else { parcel }));
        }

        /// The newest of each device and type of what lies below the client's cursor.
        fn expected(&self) -> View {
            let mut expected = View::new();
            for (partition, events) in (0..).zip(&self.log) {
                let below = |event: &&LiveEvent| event.offset < self.cursor.at(partition);
                for event in events.iter().filter(below) {
                    let key = (event.device, event.event_type.clone());
                    let newest = expected.entry(key).or_insert((0, 0));
                    *newest = told(event).max(*newest);
                }
            }
            expected
        }

        #[track_caller]
        fn check(&self) {
            let expected = self.expected();
            if self.cursor.covers(&self.ahead) {
                assert_eq!(self.view, expected);
            }
            let newer = |(key, age): (&Key, &(i64, Offset))| self.view.get(key) >= Some(age);
            assert!(expected.iter().all(newer), "nothing older than the cursor says");
        }
    }

    proptest! {
        #[test]
        fn a_view_is_the_newest_of_the_log_up_to_its_cursor_however_it_was_cut(ops in ops()) {
            let mut world = World::new();
            ops.iter().for_each(|op| world.run(op));
            for partition in 0..PARTITIONS {
                world.run(&Op::Come(partition, 80));
            }
            world.run(&Op::Write);
            world.cursor = world.place.clone();
            world.ahead = world.place.clone();
            world.check();
        }
    }

    fn of(device: u128, offset: Offset, timestamp_ms: i64) -> LiveEvent {
        let json =
            format!("{{\"id\":\"x\",\"timestamp\":{timestamp_ms},\"metadata\":{{}}}}").into();
        LiveEvent { device: DeviceId(Uuid::from_u128(device)), json, ..event(offset, 1) }
    }

    fn parcel(seq: u64, events: Vec<LiveEvent>) -> Parcel {
        let place = Arc::new(Cursor { epoch: Uuid::nil(), next: [seq.cast_signed()].into() });
        Parcel::new((seq, Instant::now()), 0, events, place)
    }

    #[test]
    fn a_burst_becomes_one_event_of_each_device_in_the_order_they_came() {
        let burst = [
            parcel(1, vec![of(1, 0, 10), of(2, 1, 10), of(1, 2, 11)]),
            parcel(2, vec![of(2, 3, 9), of(1, 4, 11), of(3, 5, 1)]),
        ];
        let newest = conflate(&burst.map(Arc::new)).unwrap();
        let offsets: Vec<_> = newest.events.iter().map(|event| event.offset).collect();
        assert_eq!((offsets, newest.left_out), (vec![1, 4, 5], Some(3)));
        assert_eq!(newest.place.at(0), 2);
        assert!(conflate(&[]).is_none());
    }

    #[test]
    fn those_who_are_shown_the_same_share_what_is_left_of_it() {
        let queue: Vec<_> =
            (1..4).map(|seq| Arc::new(parcel(seq, vec![of(1, 0, 1)]).shared())).collect();
        let all = conflate(&queue).unwrap();
        assert!(all.shared && Arc::ptr_eq(&all, &conflate(&queue).unwrap()));
        assert!(!Arc::ptr_eq(&all, &conflate(&queue[1..]).unwrap()), "it began later");
        let own = Arc::new(parcel(1, vec![of(1, 0, 1)]));
        assert!(!conflate(&[own, queue[1].clone()]).unwrap().shared);
    }
}
