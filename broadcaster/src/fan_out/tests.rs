//! Sockets in fan-outs against a model: whoever takes what it is given, refuses it or takes it late, leaves
//! and comes back, each socket is given what it asked for in order and once, or is told of a gap.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use prometheus::Registry;
use proptest::prelude::*;
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::{Bounds, Offset, Partition};
use pulsestream_shared::metrics::freshness;
use uuid::Uuid;

use super::*;
use crate::feed::{Bounded, Feed};
use crate::filter::Audience;
use crate::frame::tests::texts;
use crate::model::Log;
use crate::range::LiveEvent;
use crate::range::tests::event;
use crate::ring::Kept;
use crate::subs::{Stop, Subs};

const PARTITIONS: usize = 2;
const SOCKETS: usize = 4;

/// What a socket does with frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    All,
    /// It takes them, and its task must write the rest.
    Late,
    None,
}

/// A socket as the fan-out sees it.
struct Screen {
    taking: AtomicU8,
    /// Its task has something to write.
    busy: AtomicU8,
    frames: Mutex<Vec<Bytes>>,
}

impl Outlet for Screen {
    fn offer(&self, frames: &Bytes) -> Offered {
        let taking = self.taking.load(Ordering::Relaxed);
        if self.busy.load(Ordering::Relaxed) == 1 || taking == Taking::None as u8 {
            return Offered::Refused;
        }
        self.show(frames);
        if taking == Taking::Late as u8 {
            self.busy.store(1, Ordering::Relaxed);
            return Offered::Kept;
        }
        Offered::Written
    }
}

impl Screen {
    fn new() -> Arc<Self> {
        let taking = AtomicU8::new(Taking::All as u8);
        Arc::new(Self { taking, busy: AtomicU8::new(0), frames: Mutex::default() })
    }

    fn show(&self, frames: &Bytes) {
        self.frames.lock().unwrap().push(frames.clone());
    }
}

struct Socket {
    screen: Arc<Screen>,
    dialect: Dialect,
    subs: Option<Subs>,
    /// Pulled by its task, and not written yet.
    pulled: Vec<Bytes>,
    /// What it should have been shown.
    expected: Vec<String>,
}

struct World {
    feed: Arc<Feed>,
    fan_outs: Arc<FanOuts>,
    next: [Offset; PARTITIONS],
    sockets: Vec<Socket>,
}

#[derive(Debug, Clone)]
enum Op {
    /// So many events of a partition come.
    Come(usize, usize),
    Connect(usize),
    /// The socket's task has its turn.
    Wake(usize),
    /// The socket's task tells the places that moved.
    Beat(usize),
    /// Every fan-out has its turn.
    Run,
    Take(usize, Taking),
    Leave(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let taking =
        prop_oneof![3 => Just(Taking::All), 1 => Just(Taking::Late), 1 => Just(Taking::None)];
    let op = prop_oneof![
        8 => (0..PARTITIONS, 1..4_usize).prop_map(|(partition, count)| Op::Come(partition, count)),
        4 => (0..SOCKETS).prop_map(Op::Connect),
        8 => (0..SOCKETS).prop_map(Op::Wake),
        2 => (0..SOCKETS).prop_map(Op::Beat),
        8 => Just(Op::Run),
        3 => (0..SOCKETS, taking).prop_map(|(socket, taking)| Op::Take(socket, taking)),
        1 => (0..SOCKETS).prop_map(Op::Leave),
    ];
    prop::collection::vec(op, 1..120)
}

fn feed() -> Arc<Feed> {
    let hour = Duration::from_secs(3_600);
    let ring = Kept { bytes: 1 << 20, age: hour };
    let bounded = Bounded { ring, queue_bytes: 40, lag: hour, repeat_window: hour };
    let feed = Feed::new(Arc::new(Log::default()), bounded);
    feed.restart(Uuid::from_u128(1), &[Bounds { first: 0, next: 0 }; PARTITIONS]);
    feed
}

fn fan_outs() -> Arc<FanOuts> {
    Arc::new(FanOuts::new(Sent::new(&Registry::new(), &freshness(&Registry::new()))))
}

fn delivery(feed: &Arc<Feed>, bell: &Bell, mode: Mode) -> Box<Delivery> {
    let filter = Filter::parse(Audience::Client(ClientId(7)), "").unwrap();
    let place = Cursor::clone(&feed.head().1);
    let subscription = feed.subscribe(filter, place, bell.clone());
    Box::new(Delivery::new(subscription, mode, feed.begun_at))
}

fn named(partition: usize, offset: Offset) -> LiveEvent {
    LiveEvent { json: format!("{{\"at\":\"{partition}/{offset}\"}}").into(), ..event(offset, 1) }
}

impl World {
    fn new() -> Self {
        let socket = |number| Socket {
            screen: Screen::new(),
            // One cannot be told of a gap.
            dialect: if number == 0 { Dialect::Plain } else { Dialect::Framed("main".into()) },
            subs: None,
            pulled: Vec::new(),
            expected: Vec::new(),
        };
        let sockets = (0..SOCKETS).map(socket).collect();
        Self { feed: feed(), fan_outs: fan_outs(), next: [0; PARTITIONS], sockets }
    }

    async fn run(&mut self, op: &Op) {
        match op {
            Op::Come(partition, count) => self.come(*partition, *count),
            Op::Connect(socket) => self.connect(*socket),
            Op::Wake(socket) => self.sockets[*socket].wake(),
            Op::Beat(socket) => self.sockets[*socket].beat(),
            Op::Run => yield_now().await,
            Op::Take(socket, taking) => {
                self.sockets[*socket].screen.taking.store(*taking as u8, Ordering::Relaxed);
            }
            Op::Leave(socket) => self.leave(*socket),
        }
    }

    fn come(&mut self, partition: usize, count: usize) {
        let from = self.next[partition];
        let to = from + Offset::try_from(count).unwrap();
        self.next[partition] = to;
        let events: Vec<_> = (from..to).map(|offset| named(partition, offset)).collect();
        for socket in self.sockets.iter_mut().filter(|socket| socket.subs.is_some()) {
            socket.expected.extend(events.iter().map(|event| at(&event.json)));
        }
        let number = Partition::try_from(partition).unwrap();
        self.feed.show(number, to - 1, &events, Instant::now());
    }

    fn connect(&mut self, number: usize) {
        self.leave(number);
        let socket = &mut self.sockets[number];
        let mut subs = Subs::new(self.fan_outs.clone());
        let delivery = delivery(&self.feed, &subs.bell, Mode::Live);
        subs.add(socket.dialect.clone(), *delivery);
        socket.subs = Some(subs);
    }

    fn leave(&mut self, number: usize) {
        let socket = &mut self.sockets[number];
        socket.subs = None;
        socket.expected.clear();
        socket.pulled.clear();
        socket.screen.frames.lock().unwrap().clear();
        socket.screen.busy.store(0, Ordering::Relaxed);
    }

    /// Everybody takes everything, for as long as anybody has something to do.
    async fn finish(&mut self) {
        for socket in &self.sockets {
            socket.screen.taking.store(Taking::All as u8, Ordering::Relaxed);
        }
        for _ in 0..5 {
            for socket in &mut self.sockets {
                socket.wake();
            }
            for _ in 0..50 {
                yield_now().await;
            }
        }
        for (number, socket) in self.sockets.iter().enumerate() {
            assert_eq!(socket.shown(), socket.expected, "socket {number}");
        }
        let live = self.sockets.iter().filter(|socket| socket.subs.is_some()).count();
        let joined = self.fan_outs.load().0;
        assert!(joined == live || live == 1, "{joined} of {live} joined");
        self.sockets.iter_mut().for_each(|socket| socket.subs = None);
        yield_now().await;
        assert_eq!((self.fan_outs.load(), self.feed.load()), ((0, 0), (0, 0)), "nothing is left");
    }
}

/// The places of a frame's events.
fn at(frame: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(frame).unwrap();
    json["at"].as_str().unwrap().to_owned()
}

impl Socket {
    /// Writes what was pulled last, and pulls: what comes in between may be written by a fan-out.
    fn wake(&mut self) {
        if self.screen.taking.load(Ordering::Relaxed) != Taking::None as u8 {
            self.pulled.drain(..).for_each(|frames| self.screen.show(&frames));
            self.pulled = self.pull().unwrap_or_default();
        }
    }

    fn pull(&mut self) -> Option<Vec<Bytes>> {
        self.screen.busy.store(0, Ordering::Relaxed);
        let pulled = self.subs.as_mut()?.pull(&self.screen);
        Some(pulled.unwrap_or_else(|_| panic!("nothing was missed")))
    }

    fn beat(&mut self) {
        let stuck = self.screen.taking.load(Ordering::Relaxed) == Taking::None as u8;
        if !stuck && self.pulled.is_empty() {
            self.pulled = self.subs.as_mut().map(Subs::moved).unwrap_or_default();
        }
    }

    fn shown(&self) -> Vec<String> {
        let frames = self.screen.frames.lock().unwrap();
        let (mut shown, mut place) = (Vec::new(), None);
        for frame in frames.iter().flat_map(|frames| texts(frames)) {
            match &self.dialect {
                Dialect::Plain => shown.push(at(frame.as_bytes())),
                Dialect::Framed(_) => {
                    let json: serde_json::Value = serde_json::from_str(&frame).unwrap();
                    let cursor = Cursor::open(json["cursor"].as_str().unwrap()).unwrap();
                    assert!(
                        place.as_ref().is_none_or(|place| cursor.covers(place)),
                        "it went back"
                    );
                    place = Some(cursor);
                    let events = json["events"].as_array().unwrap().iter();
                    shown.extend(events.map(|event| event["at"].as_str().unwrap().to_owned()));
                }
            }
        }
        shown
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}

proptest! {
    #[test]
    fn every_socket_is_shown_everything_in_order_and_once_whoever_is_slow(ops in ops()) {
        block_on(async {
            let mut world = World::new();
            for op in &ops {
                world.run(op).await;
            }
            world.finish().await;
        });
    }
}

#[test]
fn a_log_that_is_another_one_is_told_to_all_and_ends_who_cannot_be_told() {
    block_on(async {
        let mut world = World::new();
        (0..SOCKETS).for_each(|socket| world.connect(socket));
        for _ in 0..2 {
            for socket in &mut world.sockets {
                socket.wake();
            }
        }
        assert_eq!(world.fan_outs.load().0, SOCKETS);
        world.feed.restart(Uuid::from_u128(2), &[Bounds { first: 0, next: 0 }; PARTITIONS]);
        for _ in 0..5 {
            yield_now().await;
        }
        for (number, socket) in world.sockets.iter_mut().enumerate() {
            let pulled = socket.subs.as_mut().unwrap().pull(&socket.screen);
            let missed = matches!(pulled, Err(Stop::Missed));
            let frames = socket.screen.frames.lock().unwrap();
            let mut all = frames.iter().flat_map(|frames| texts(frames));
            let told = all.any(|frame| frame.contains("other_epoch"));
            assert_eq!((missed, told), (number == 0, number > 0), "socket {number}");
        }
        // Who is still there goes on with the new log.
        world.come(0, 1);
        yield_now().await;
        let frames = world.sockets[1].screen.frames.lock().unwrap();
        assert!(texts(frames.last().unwrap())[0].contains("0/0"));
    });
}

#[test]
fn a_heartbeat_tells_each_socket_a_place_that_moved_once() {
    block_on(async {
        let mut world = World::new();
        for number in [1, 2] {
            world.connect(number);
            world.sockets[number].wake();
        }
        world.sockets[1].wake();
        assert_eq!(world.fan_outs.load().0, 2);
        // Of another client: it moves the place and is shown to nobody.
        let other = LiveEvent { client: ClientId(8), ..event(0, 1) };
        world.feed.show(0, 0, &[other], Instant::now());
        world.next[0] = 1;
        for (number, frames) in [(1, 1), (1, 1), (2, 1)] {
            world.sockets[number].beat();
            let told = world.sockets[number].screen.frames.lock().unwrap().len();
            assert_eq!(told, frames, "socket {number}");
        }
        world.come(0, 1);
        yield_now().await;
        for number in [1, 2] {
            world.sockets[number].beat();
            let told = world.sockets[number].screen.frames.lock().unwrap().len();
            assert_eq!(told, 2, "the event told socket {number}");
        }
    });
}

#[test]
fn who_has_not_seen_what_the_others_have_does_not_join() {
    block_on(async {
        let mut world = World::new();
        for number in [0, 1, 2] {
            world.connect(number);
        }
        for number in [0, 1, 0] {
            world.sockets[number].wake();
        }
        assert_eq!(world.fan_outs.load().0, 2);
        world.come(0, 1);
        yield_now().await;
        let bell = Bell::default();
        let (outlet, dialect) = (world.sockets[2].screen.clone(), Dialect::Plain);
        let mut late = delivery(&world.feed, &bell, Mode::Live);
        assert!(late.pull(Instant::now()).is_none());
        world.come(0, 1);
        yield_now().await;
        assert!(world.fan_outs.join(late, Listener { outlet, dialect, bell }).is_err());
    });
}

#[test]
fn more_sockets_than_one_fan_out_takes_make_another() {
    block_on(async {
        let (feed, fan_outs) = (feed(), fan_outs());
        let mut joined = Vec::new();
        let bell = Bell::default();
        let screen = Screen::new();
        // One alone has nobody to join.
        let mut first = delivery(&feed, &bell, Mode::Window(Duration::from_millis(50)));
        assert!(first.pull(Instant::now()).is_none());
        let listener =
            || Listener { outlet: screen.clone(), dialect: Dialect::Plain, bell: bell.clone() };
        let first = fan_outs.join(first, listener()).err().unwrap();
        for _ in 0..=LISTENERS {
            let mut delivery = delivery(&feed, &bell, first.mode);
            assert!(delivery.pull(Instant::now()).is_none());
            joined.push(fan_outs.join(delivery, listener()).ok().unwrap());
        }
        assert_eq!(fan_outs.load(), (LISTENERS + 1, 2));
    });
}
