//! What every [`Bus`] must do, engine or wrapper: one test for each sentence of the port.
//!
//! [`bus_conformance!`](crate::bus_conformance) turns the rules into tests of an engine. What a cut
//! looks like is tested with the engine that can be cut.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;

use crate::bus::{Bus, BusEvent, Channel, Subscription};
use crate::testing::wait_for;

const PATIENCE: Duration = Duration::from_secs(10);

/// A bus, and whatever must live as long as it does.
pub struct BusUnderTest {
    /// Nobody else uses its channels.
    pub bus: Arc<dyn Bus>,
    /// Dropped after the test.
    pub keep: Box<dyn Any + Send>,
}

impl BusUnderTest {
    /// A bus that needs nothing else.
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, keep: Box::new(()) }
    }
}

/// Makes a module `$engine` with a test for every rule; `$open` gives a fresh [`BusUnderTest`] and may
/// await. It is evaluated inside the module: name what it uses by `super::`.
#[macro_export]
macro_rules! bus_conformance {
    ($engine:ident, $open:expr) => {
        $crate::bus_conformance! { @rules $engine, $open;
            the_first_event_says_that_the_subscription_stands,
            what_is_published_after_that_is_heard,
            messages_of_one_publisher_keep_their_order_on_a_channel,
            messages_published_together_keep_their_order_on_a_channel,
            only_subscribed_channels_are_heard,
            every_subscriber_hears_every_message,
            bytes_arrive_as_they_were_published,
            a_wait_that_is_given_up_loses_nothing,
            a_slow_subscriber_hears_that_it_lagged_and_then_hears_on,
            a_dropped_subscription_disturbs_nobody,
        }
    };
    (@rules $engine:ident, $open:expr; $($rule:ident),* $(,)?) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $rule() {
                    $crate::testing::bus::$rule($open).await;
                }
            )*
        }
    };
}

/// The next event of a subscription that should have one.
///
/// # Panics
/// When none comes in time, or the subscription has ended.
pub async fn hear(subscription: &mut dyn Subscription) -> BusEvent {
    let event = tokio::time::timeout(PATIENCE, subscription.next()).await;
    event.expect("nothing was heard in time").expect("the subscription has ended")
}

/// Subscribes and hears the confirmation.
///
/// # Panics
/// When the first event is another one.
pub async fn listen(bus: &dyn Bus, channels: &[Channel]) -> Box<dyn Subscription> {
    let mut subscription = bus.subscribe(channels).await;
    assert_eq!(hear(&mut *subscription).await, BusEvent::Restored);
    subscription
}

async fn say(bus: &dyn Bus, channel: Channel, message: impl Into<Bytes>) {
    bus.publish(&[(channel, message.into())]).await.expect("publish");
}

fn message(channel: Channel, text: &'static str) -> BusEvent {
    BusEvent::Message(channel, Bytes::from_static(text.as_bytes()))
}

/// "The first event is `Restored`, once every channel is confirmed."
pub async fn the_first_event_says_that_the_subscription_stands(it: BusUnderTest) {
    let channels: Vec<_> = (0..64).map(Channel::Live).chain([Channel::Keys]).collect();
    listen(&*it.bus, &channels).await;
}

/// "What is published from now on is heard", by the sender too.
pub async fn what_is_published_after_that_is_heard(it: BusUnderTest) {
    for round in 0..20 {
        let channel = Channel::Live(round);
        let mut subscription = listen(&*it.bus, &[channel]).await;
        say(&*it.bus, channel, "at once").await;
        assert_eq!(hear(&mut *subscription).await, message(channel, "at once"));
    }
}

/// "Messages of one publisher on one channel arrive in order."
pub async fn messages_of_one_publisher_keep_their_order_on_a_channel(it: BusUnderTest) {
    let channels = [Channel::Live(0), Channel::Live(1), Channel::Keys];
    let mut subscription = listen(&*it.bus, &channels).await;
    for number in 0..300_u32 {
        say(&*it.bus, channels[number as usize % 3], number.to_string()).await;
    }
    let mut last = [None; 3];
    for _ in 0..300 {
        let BusEvent::Message(channel, text) = hear(&mut *subscription).await else {
            unreachable!("nothing but messages was due");
        };
        let place = channels.iter().position(|known| *known == channel).expect("subscribed");
        let number: u32 = String::from_utf8_lossy(&text).parse().expect("a number");
        assert!(last[place] < Some(number), "{number} after {:?}", last[place]);
        last[place] = Some(number);
    }
}

/// "Sends messages, in order", and none when there is none.
pub async fn messages_published_together_keep_their_order_on_a_channel(it: BusUnderTest) {
    let channels = [Channel::Live(0), Channel::Live(1)];
    let mut subscription = listen(&*it.bus, &channels).await;
    let text = |number: usize| Bytes::from(number.to_string());
    let messages: Vec<_> = (0..100).map(|number| (channels[number % 2], text(number))).collect();
    it.bus.publish(&[]).await.expect("publish nothing");
    it.bus.publish(&messages).await.expect("publish");
    let mut heard = [Vec::new(), Vec::new()];
    for _ in 0..messages.len() {
        let BusEvent::Message(channel, text) = hear(&mut *subscription).await else {
            unreachable!("nothing but messages was due");
        };
        heard[usize::from(channel == channels[1])].push(text);
    }
    for (parity, heard) in heard.into_iter().enumerate() {
        assert!(heard.into_iter().eq((parity..100).step_by(2).map(text)), "channel {parity}");
    }
}

/// "Subscribes to channels", and to no others.
pub async fn only_subscribed_channels_are_heard(it: BusUnderTest) {
    let mut keys = listen(&*it.bus, &[Channel::Keys]).await;
    let mut one = listen(&*it.bus, &[Channel::Live(1)]).await;
    say(&*it.bus, Channel::Live(11), "eleven").await;
    say(&*it.bus, Channel::Live(1), "one").await;
    say(&*it.bus, Channel::Keys, "keys").await;
    assert_eq!(hear(&mut *one).await, message(Channel::Live(1), "one"));
    assert_eq!(hear(&mut *keys).await, message(Channel::Keys, "keys"));
}

/// "Sends a message to everybody subscribed to the channel."
pub async fn every_subscriber_hears_every_message(it: BusUnderTest) {
    let mut first = listen(&*it.bus, &[Channel::Keys]).await;
    let mut second = listen(&*it.bus, &[Channel::Live(3), Channel::Keys]).await;
    for text in ["a", "b"] {
        say(&*it.bus, Channel::Keys, text).await;
        assert_eq!(hear(&mut *first).await, message(Channel::Keys, text));
        assert_eq!(hear(&mut *second).await, message(Channel::Keys, text));
    }
}

/// "A message, as published": empty, binary, or a megabyte.
pub async fn bytes_arrive_as_they_were_published(it: BusUnderTest) {
    let mut subscription = listen(&*it.bus, &[Channel::Keys]).await;
    for sent in [vec![], (0..=255).collect::<Vec<u8>>(), vec![13; 1024 * 1024]] {
        let sent = Bytes::from(sent);
        say(&*it.bus, Channel::Keys, sent.clone()).await;
        let heard = hear(&mut *subscription).await;
        assert!(heard == BusEvent::Message(Channel::Keys, sent), "other bytes");
    }
}

/// "Waits for the next event. Cancel safe."
pub async fn a_wait_that_is_given_up_loses_nothing(it: BusUnderTest) {
    let mut subscription = listen(&*it.bus, &[Channel::Keys]).await;
    assert_eq!(subscription.next().now_or_never(), None);
    say(&*it.bus, Channel::Keys, "kept").await;
    let heard = wait_until_now(&mut *subscription).await;
    assert_eq!(heard, message(Channel::Keys, "kept"));
}

/// Looks again and again, giving each wait up at once.
async fn wait_until_now(subscription: &mut dyn Subscription) -> BusEvent {
    let heard = std::sync::Mutex::new(None);
    let subscription = tokio::sync::Mutex::new(subscription);
    wait_for("the message", PATIENCE, async || {
        let next = subscription.lock().await.next().now_or_never().flatten();
        let mut heard = heard.lock().expect("not poisoned");
        *heard = next;
        heard.is_some()
    })
    .await;
    heard.into_inner().expect("not poisoned").expect("waited for")
}

/// "Its queue is bounded: a slow reader gets `Lagged`."
pub async fn a_slow_subscriber_hears_that_it_lagged_and_then_hears_on(it: BusUnderTest) {
    const PIECE_BYTES: usize = 64 * 1024;
    // 75 MiB: more than anybody may keep, beside what may still lie in the server and in sockets when the
    // last piece is published.
    const PIECES: usize = 1_200;
    let mut slow = listen(&*it.bus, &[Channel::Live(0), Channel::Keys]).await;
    let mut quick = listen(&*it.bus, &[Channel::Live(0)]).await;
    let piece = Bytes::from(vec![1; PIECE_BYTES]);
    for _ in 0..PIECES {
        say(&*it.bus, Channel::Live(0), piece.clone()).await;
        // A slow subscriber does not disturb a quick one, and what the quick one heard has been
        // published to the slow one.
        assert!(matches!(hear(&mut *quick).await, BusEvent::Message(..)));
    }
    let mut kept = 0;
    while let BusEvent::Message(_, message) = hear(&mut *slow).await {
        kept += message.len();
    }
    assert!(kept <= 20 * 1024 * 1024, "{kept} bytes were kept for a subscriber that slept");
    say(&*it.bus, Channel::Keys, "on").await;
    loop {
        match hear(&mut *slow).await {
            BusEvent::Message(Channel::Keys, text) => {
                assert_eq!(text, "on");
                return;
            }
            BusEvent::Message(..) => {} // published while the others were read
            other => unreachable!("{other:?} was told although nothing is missing"),
        }
    }
}

/// "Dropping the subscription ends it", and nothing else.
pub async fn a_dropped_subscription_disturbs_nobody(it: BusUnderTest) {
    let dropped = listen(&*it.bus, &[Channel::Keys]).await;
    let mut kept = listen(&*it.bus, &[Channel::Keys]).await;
    drop(dropped);
    for text in ["a", "b"] {
        say(&*it.bus, Channel::Keys, text).await;
        assert_eq!(hear(&mut *kept).await, message(Channel::Keys, text));
    }
}
