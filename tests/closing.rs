//! The moment between a channel that the broker has closed and the client's saying why. In a process of its own, where the
//! client is halted in it: at what it logs before it fails the first publish.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use steadfast_core::{Broker, Destination, Outgoing, PublishErrorKind};
use steadfast_testbed::shared;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
static ARMED: AtomicBool = AtomicBool::new(false);

/// Halts the client's thread once it is armed: says so, and waits until it may go on.
struct Halt {
    reached: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl<S: tracing::Subscriber> Layer<S> for Halt {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut resolves = Resolves(false);
        event.record(&mut resolves);
        if event.metadata().target() == "lapin::promise" && resolves.0 && ARMED.swap(false, Ordering::SeqCst)
        {
            self.reached.send(()).expect("the test waits");
            // an error means that the test has ended
            let _ = self.go_on.lock().expect("one thread").recv();
        }
    }
}

/// Whether it is a publish's answer that is logged.
struct Resolves(bool);

impl Visit for Resolves {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 |= field.name() == "promise" && format!("{value:?}").contains("[acknowledgement]");
    }
}

#[tokio::test]
async fn a_publish_is_not_given_up_before_it_is_known_why_its_channel_was_closed() {
    let (reached, halted) = sync_channel(1);
    let (free, go_on) = sync_channel(1);
    let layer = Halt { reached, go_on: Mutex::new(go_on) }.with_filter(LevelFilter::TRACE);
    tracing::subscriber::set_global_default(registry().with(layer)).expect("no other");
    let url = tokio::task::spawn_blocking(shared::rabbit_url).await.expect("starts");
    let broker = steadfast_amqp::connect(url).await.expect("connects");
    let publisher = broker.publisher().await.expect("publishes");
    publisher.send(Outgoing::new("no-such-queue", "")).await.expect_err("opens the channel");

    ARMED.store(true, Ordering::SeqCst);
    let missing = Destination::exchange("no-such-exchange", "k");
    let first = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.send(Outgoing::new(missing, "1")).await }
    });
    let halted = tokio::task::spawn_blocking(move || halted.recv_timeout(PATIENCE));
    halted.await.expect("runs").expect("the client is halted");
    // another message makes the publisher look at its channel, which is closed by now
    let second = tokio::spawn(async move { publisher.send(Outgoing::new("no-such-queue", "2")).await });
    // one that gives up does so at once; that one does not shows by nothing
    let begun = Instant::now();
    while !first.is_finished() && begun.elapsed() < Duration::from_millis(200) {
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    free.send(()).expect("the client waits");
    let outcomes = [first.await.expect("runs"), second.await.expect("runs")];
    let kinds = outcomes.map(|outcome| outcome.expect_err("fails").kind());
    assert_eq!(kinds, [PublishErrorKind::Unroutable; 2]);
}
