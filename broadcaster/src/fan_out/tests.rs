//! Sockets in fan-outs against a model: whoever takes what it is given, refuses it or takes it late, leaves
//! and comes back, each socket is given what it asked for in order and once, or is told of a gap.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use prometheus::Registry;
use proptest::prelude::*;
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::{Bounds, Offset, Partition};
use uuid::Uuid;

use super::*;
use crate::feed::{Bounded, Feed};
use crate::filter::Audience;
use crate::model::Log;
use crate::range::LiveEvent;
use crate::range::tests::event;
use crate::ring::Kept;

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
    frames: Mutex<Vec<Utf8Bytes>>,
}

impl Outlet for Screen {
    fn offer(&self, frames: &[Utf8Bytes]) -> Offered {
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

    fn show(&self, frames: &[Utf8Bytes]) {
        self.frames.lock().unwrap().extend_from_slice(frames);
    }
}

enum Way {
    Alone(Box<Delivery>),
    Joined(Joined),
}

struct Socket {
    screen: Arc<Screen>,
    dialect: Dialect,
    bell: Bell,
    way: Option<Way>,
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
    Arc::new(FanOuts::new(Sent::new(&Registry::new())))
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
            bell: Bell::default(),
            way: None,
            expected: Vec::new(),
        };
        let sockets = (0..SOCKETS).map(socket).collect();
        Self { feed: feed(), fan_outs: fan_outs(), next: [0; PARTITIONS], sockets }
    }

    async fn run(&mut self, op: &Op) {
        match op {
            Op::Come(partition, count) => self.come(*partition, *count),
            Op::Connect(socket) => self.connect(*socket),
            Op::Wake(socket) => self.sockets[*socket].wake(&self.fan_outs),
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
        for socket in self.sockets.iter_mut().filter(|socket| socket.way.is_some()) {
            socket.expected.extend(events.iter().map(|event| at(&event.json)));
        }
        let number = Partition::try_from(partition).unwrap();
        self.feed.show(number, to - 1, &events, Instant::now());
    }

    fn connect(&mut self, number: usize) {
        self.leave(number);
        let socket = &mut self.sockets[number];
        socket.way = Some(Way::Alone(delivery(&self.feed, &socket.bell, Mode::Live)));
    }

    fn leave(&mut self, number: usize) {
        let socket = &mut self.sockets[number];
        socket.way = None;
        socket.expected.clear();
        socket.screen.frames.lock().unwrap().clear();
        socket.screen.busy.store(0, Ordering::Relaxed);
    }

    /// Everybody takes everything, for as long as anybody has something to do.
    async fn finish(&mut self) {
        for socket in &self.sockets {
            socket.screen.taking.store(Taking::All as u8, Ordering::Relaxed);
        }
        for _ in 0..5 {
            self.sockets.iter_mut().for_each(|socket| socket.wake(&self.fan_outs));
            for _ in 0..50 {
                yield_now().await;
            }
        }
        for (number, socket) in self.sockets.iter().enumerate() {
            assert_eq!(socket.shown(), socket.expected, "socket {number}");
        }
        let live = self.sockets.iter().filter(|socket| socket.way.is_some()).count();
        let joined = |socket: &&Socket| matches!(socket.way, Some(Way::Joined(_)));
        let joined = self.sockets.iter().filter(joined).count();
        assert!(joined == live || live == 1, "{joined} of {live} joined");
        self.sockets.iter_mut().for_each(|socket| socket.way = None);
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
    fn wake(&mut self, fan_outs: &Arc<FanOuts>) {
        if self.screen.taking.load(Ordering::Relaxed) == Taking::None as u8 {
            return; // its task is stuck in a write
        }
        self.screen.busy.store(0, Ordering::Relaxed);
        let mut way = match self.way.take() {
            None => return,
            Some(Way::Joined(joined)) => match joined.fallen() {
                None => return self.way = Some(Way::Joined(joined)),
                Some(Fallen::At(stand)) => Box::new(Delivery::at(stand, self.bell.clone())),
                Some(Fallen::Missed | Fallen::Gone) => panic!("nothing was missed"),
            },
            Some(Way::Alone(delivery)) => delivery,
        };
        while let Some(outgoing) = way.pull(Instant::now()) {
            self.screen.show(&self.dialect.frames(&outgoing, way.place()).unwrap());
        }
        let (outlet, bell) = (self.screen.clone(), self.bell.clone());
        let listener = Listener { outlet, dialect: self.dialect.clone(), bell };
        self.way = Some(match fan_outs.join(way, listener) {
            Ok(joined) => Way::Joined(joined),
            Err(alone) => Way::Alone(alone),
        });
    }

    fn shown(&self) -> Vec<String> {
        let frames = self.screen.frames.lock().unwrap();
        let mut shown = Vec::new();
        for frame in frames.iter() {
            match &self.dialect {
                Dialect::Plain => shown.push(at(frame.as_bytes())),
                Dialect::Framed(_) => {
                    let json: serde_json::Value = serde_json::from_str(frame).unwrap();
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
        let mut wakes: VecDeque<_> = (0..2 * SOCKETS).map(|number| number % SOCKETS).collect();
        while let Some(socket) = wakes.pop_front() {
            world.sockets[socket].wake(&world.fan_outs);
            yield_now().await;
        }
        world.feed.restart(Uuid::from_u128(2), &[Bounds { first: 0, next: 0 }; PARTITIONS]);
        for _ in 0..5 {
            yield_now().await;
        }
        for (number, socket) in world.sockets.iter().enumerate() {
            let Some(Way::Joined(joined)) = &socket.way else { panic!("{number} is alone") };
            let missed = matches!(joined.fallen(), Some(Fallen::Missed));
            let frames = socket.screen.frames.lock().unwrap();
            let told = frames.iter().any(|frame| frame.contains("other_epoch"));
            assert_eq!((missed, told), (number == 0, number > 0), "socket {number}");
        }
        // Who is still there goes on with the new log.
        world.come(0, 1);
        yield_now().await;
        assert!(world.sockets[1].screen.frames.lock().unwrap().last().unwrap().contains("0/0"));
    });
}

#[test]
fn a_heartbeat_tells_each_socket_a_place_that_moved_once() {
    block_on(async {
        let (feed, fan_outs) = (feed(), fan_outs());
        let bell = Bell::default();
        let screen = Screen::new();
        let mut alone: Vec<_> = (0..2).map(|_| delivery(&feed, &bell, Mode::Live)).collect();
        alone.iter_mut().for_each(|delivery| assert!(delivery.pull(Instant::now()).is_none()));
        let listener =
            || Listener { outlet: screen.clone(), dialect: Dialect::Plain, bell: bell.clone() };
        let join = |delivery| fan_outs.join(delivery, listener()).ok().unwrap();
        let joined: Vec<_> = alone.into_iter().map(join).collect();
        assert!(joined[0].moved().is_none());
        // Of another client: it moves the place and is shown to nobody.
        let other = LiveEvent { client: ClientId(8), ..event(0, 1) };
        feed.show(0, 0, &[other], Instant::now());
        assert_eq!(joined[0].moved().unwrap().at(0), 1);
        assert!(joined[0].moved().is_none(), "it knows");
        assert_eq!(joined[1].moved().unwrap().at(0), 1, "the other does not");
        feed.show(0, 1, &[event(1, 2)], Instant::now());
        yield_now().await;
        assert!(joined.iter().all(|joined| joined.moved().is_none()), "the event told both");
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
