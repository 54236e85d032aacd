//! A broker that takes no messages for a while, under load. In a process of its own, whose memory is looked at.
//!
//! `STEADFAST_BLOCKED` is for how many seconds; 10 by default.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use steadfast::amqp::{Options, connect_with};
use steadfast::{
    Broker, DeadLetter, Delivery, Destination, Headers, Outgoing, Publisher, Reason, SettleErrorKind, Source,
    Subscribe, Subscription,
};
use steadfast_testbed::{Rabbit, RabbitOptions};
use tokio::task::JoinSet;
use tokio::time::Instant;

const PUBLISHERS: usize = 4_000;
const BACKLOG: usize = 4_000;
const BODY: usize = 1_024;
/// So many that acknowledgements may wait for a copy.
const IN_FLIGHT: usize = 200;
/// What the process may grow by meanwhile: the allocator's own doings.
const GROWTH: usize = 16 * 1024 * 1024;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4_096
}

async fn on<T: Send + 'static>(rabbit: &Arc<Rabbit>, act: impl FnOnce(&Rabbit) -> T + Send + 'static) -> T {
    let rabbit = Arc::clone(rabbit);
    tokio::task::spawn_blocking(move || act(&rabbit)).await.expect("acts")
}

/// Publishes one message after the other, counts what is confirmed, and says at the end what was not.
async fn publish(
    publisher: Arc<dyn Publisher>,
    confirmed: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
) -> Vec<String> {
    let mut failed = Vec::new();
    while !over.load(Ordering::Relaxed) {
        match publisher.send(Outgoing::new("out", vec![b'x'; BODY])).await {
            Ok(()) => _ = confirmed.fetch_add(1, Ordering::Relaxed),
            Err(error) => failed.push(error.to_string()),
        }
    }
    failed
}

async fn take(subscription: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut batch = Vec::new();
    while batch.len() < count {
        let room = NonZeroUsize::new(count - batch.len()).expect("is not zero");
        let next = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch));
        tokio::time::timeout(Duration::from_secs(30), next)
            .await
            .expect("consumers go on")
            .expect("delivers");
    }
    batch
}

/// Goes on until it is stored, as a consumer does.
fn bury(subscription: &dyn Subscription, delivery: Delivery) -> impl Future<Output = ()> + use<> {
    let (settler, (message, token)) = (subscription.settler(), delivery.into_parts());
    let letter = DeadLetter::from_headers(Reason::Rejected, Headers::new());
    async move {
        while let Err(error) = settler.dead_letter(&message, token, &letter).await {
            assert_eq!(error.kind(), SettleErrorKind::NotStored, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_loses_nothing_and_consumers_go_on() {
    let blocked = std::env::var("STEADFAST_BLOCKED").map_or(10, |seconds| seconds.parse().expect("a number"));
    let start = || Arc::new(Rabbit::start(&RabbitOptions::new()).expect("starts"));
    let rabbit = tokio::task::spawn_blocking(start).await.expect("starts");
    let options = Options::new(&rabbit.url()).expect("parses").publish_deadline(Duration::from_secs(120));
    let broker = connect_with(options).await.expect("connects");
    for queue in ["in", "out", "dead"] {
        broker.declare(&Source::queue(queue)).await.expect("declares");
    }
    let publisher = broker.publisher().await.expect("publishes");
    let sent = (0..BACKLOG + 2).map(|_| publisher.send(Outgoing::new("in", vec![b'x'; BODY])));
    assert!(join_all(sent).await.iter().all(Result::is_ok));
    let request = Subscribe {
        source: Source::queue("in"),
        consumer: "meanwhile".into(),
        max_in_flight: NonZeroUsize::new(IN_FLIGHT).expect("is not zero"),
        narrow: false,
        dead_letter: Destination::queue("dead"),
    };
    let mut subscription = broker.subscribe(request).await.expect("subscribes");
    let [first, second] = take(&mut *subscription, 2).await.try_into().expect("two");
    // so that the second finds all that a copy needs
    bury(&*subscription, first).await;

    let (confirmed, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        publishers.spawn(publish(Arc::clone(&publisher), Arc::clone(&confirmed), Arc::clone(&over)));
    }
    while confirmed.load(Ordering::Relaxed) < PUBLISHERS {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]).expect("alarms")).await;
    // the publishers have felt it when nothing was confirmed for a second
    let mut before = usize::MAX;
    while std::mem::replace(&mut before, confirmed.load(Ordering::Relaxed))
        != confirmed.load(Ordering::Relaxed)
    {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // its copy is not stored before all of this is over; what is acknowledged behind it waits a moment, and no longer
    let buried = tokio::spawn(bury(&*subscription, second));
    let (memory, began, period) = (resident(), Instant::now(), Duration::from_secs(blocked));
    // a share of the backlog in each hundredth of the time
    for share in 1..=100 {
        let batch = take(&mut *subscription, BACKLOG / 100).await;
        batch.into_iter().for_each(Delivery::ack);
        subscription.settler().flush();
        tokio::time::sleep_until(began + period * share / 100).await;
    }
    let (grown, held) = (resident().saturating_sub(memory), confirmed.load(Ordering::Relaxed));
    println!(
        "blocked for {:?}: {grown} bytes more, {BACKLOG} consumed, {held} confirmed before",
        began.elapsed()
    );
    assert_eq!(held, before, "nothing is confirmed meanwhile");
    assert!(grown <= GROWTH, "{grown} bytes more");
    assert!(!buried.is_finished(), "the copy is not confirmed either");
    subscription.settler().finish().await.expect("settles");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]).expect("calms")).await;
    over.store(true, Ordering::Relaxed);
    let failed: Vec<_> = publishers.join_all().await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    buried.await.expect("is stored");
    assert!(
        broker.backlog(&Source::queue("dead")).await >= Some(2),
        "one that was not confirmed may be there twice"
    );
    let confirmed = confirmed.load(Ordering::Relaxed);
    assert!(confirmed >= before + PUBLISHERS, "each waited and was confirmed");
    assert_eq!(broker.backlog(&Source::queue("out")).await, u64::try_from(confirmed).ok(), "nothing is lost");
    assert_eq!(broker.backlog(&Source::queue("in")).await, Some(0));
    broker.close().await;
}
