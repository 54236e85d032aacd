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
use steadfast::{Broker, Delivery, Destination, Outgoing, Publisher, Source, Subscribe};
use steadfast_testbed::{Rabbit, RabbitOptions};
use tokio::task::JoinSet;
use tokio::time::Instant;

const PUBLISHERS: usize = 4_000;
const BACKLOG: usize = 4_000;
const BODY: usize = 1_024;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_loses_nothing_and_consumers_go_on() {
    let blocked = std::env::var("STEADFAST_BLOCKED").map_or(10, |seconds| seconds.parse().expect("a number"));
    let start = || Arc::new(Rabbit::start(&RabbitOptions::new()).expect("starts"));
    let rabbit = tokio::task::spawn_blocking(start).await.expect("starts");
    let options = Options::new(&rabbit.url()).expect("parses").publish_deadline(Duration::from_secs(120));
    let broker = connect_with(options).await.expect("connects");
    for queue in ["in", "out"] {
        broker.declare(&Source::queue(queue)).await.expect("declares");
    }
    let publisher = broker.publisher().await.expect("publishes");
    let sent = (0..BACKLOG).map(|_| publisher.send(Outgoing::new("in", vec![b'x'; BODY])));
    assert!(join_all(sent).await.iter().all(Result::is_ok));
    let request = Subscribe {
        source: Source::queue("in"),
        consumer: "meanwhile".into(),
        max_in_flight: NonZeroUsize::new(100).expect("is not zero"),
        narrow: false,
        dead_letter: Destination::queue("dead"),
    };
    let mut subscription = broker.subscribe(request).await.expect("subscribes");

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
    let (memory, began, period) = (resident(), Instant::now(), Duration::from_secs(blocked));
    // a share of the backlog in each hundredth of the time
    for share in 1..=100 {
        let mut batch = Vec::new();
        while batch.len() < BACKLOG / 100 {
            let room = NonZeroUsize::new(BACKLOG / 100 - batch.len()).expect("is not zero");
            let next = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch));
            tokio::time::timeout(Duration::from_secs(30), next)
                .await
                .expect("consumers go on")
                .expect("delivers");
        }
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
    subscription.settler().finish().await.expect("settles");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]).expect("calms")).await;
    over.store(true, Ordering::Relaxed);
    let failed: Vec<_> = publishers.join_all().await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    let confirmed = confirmed.load(Ordering::Relaxed);
    assert!(confirmed >= before + PUBLISHERS, "each waited and was confirmed");
    assert_eq!(broker.backlog(&Source::queue("out")).await, u64::try_from(confirmed).ok(), "nothing is lost");
    assert_eq!(broker.backlog(&Source::queue("in")).await, Some(0));
    broker.close().await;
}
