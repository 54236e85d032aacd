//! Several consumers of one queue: who takes, who waits, who is refused; and deliveries that stay open for too long.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use steadfast_amqp::{Options, Queue};
use steadfast_core::{Broker, Delivery, Source, SubscribeErrorKind};

use crate::rig::{Consuming, Rig, body, eventually, subscribe, url};

#[tokio::test]
async fn of_two_consumers_the_higher_one_takes_and_the_other_takes_what_is_too_much() {
    let rig = Rig::new("rank").await;
    let source = |rank| Source::from(Queue::quorum(rig.queue.as_str()).consumer_priority(rank));
    let mut low = rig.subscribe_to(source(-1), 5).await;
    let mut high = rig.subscribe_to(source(7), 3).await;
    rig.publish(0..5).await;
    let taken = high.take(3).await;
    let rest = low.take(2).await;
    let bodies = |taken: &[Delivery]| taken.iter().map(body).collect::<Vec<_>>();
    assert_eq!(
        (bodies(&taken), bodies(&rest)),
        (vec!["0".into(), "1".into(), "2".into()], vec!["3".into(), "4".into()])
    );
    taken.into_iter().chain(rest).for_each(Delivery::ack);
    low.finish().await;
    high.finish().await;
}

#[tokio::test]
async fn an_exclusive_consumer_suffers_no_other() {
    let rig = Rig::new("exclusive").await;
    let alone = rig.subscribe_to(Queue::classic(rig.queue.as_str()).exclusive_consumer().into(), 5).await;
    let request = subscribe(Source::queue(rig.queue.as_str()), &rig.dead(), 5);
    let error = rig.broker.subscribe(request.clone()).await.err().expect("refuses");
    assert_eq!(error.kind(), SubscribeErrorKind::Refused, "{error}");
    alone.finish().await;
    rig.broker.subscribe(request).await.expect("takes it over");
}

#[tokio::test]
async fn a_single_active_consumer_is_followed_by_the_next_and_nobody_is_called_deaf() {
    let rig = Rig::new("single").await;
    let source = Source::from(Queue::quorum(rig.queue.as_str()).single_active_consumer());
    let start = async || {
        let mut request = subscribe(source.clone(), &rig.dead(), 5);
        request.narrow = true;
        Consuming(rig.broker.subscribe(request).await.expect("subscribes"))
    };
    let (mut active, mut standby) = (start().await, start().await);
    // a change of window must not hand the queue to the other one
    active.0.set_narrow(false);
    rig.publish(0..20).await;
    let taken = active.take(5).await;
    assert!(standby.next(1).now_or_never().is_none(), "it waits");
    assert_eq!(rig.broker.backlog(&source).await, None);
    taken.into_iter().for_each(Delivery::ack);
    active.finish().await;
    assert_eq!(body(&standby.one().await), "5");
}

/// What was logged by anybody in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("held by nobody").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writes = log.clone();
        tracing_subscriber::fmt().with_writer(move || writes.clone()).with_ansi(false).init();
        log
    })
}

#[tokio::test]
async fn a_delivery_that_is_open_for_too_long_is_said_ahead_of_the_timeout() {
    let log = log();
    let rig = Rig::new("overdue").await;
    let options = Options::new(url().await).expect("parses").consumer_timeout(Duration::from_secs(2));
    let broker = steadfast_amqp::connect_with(options).await.expect("connects");
    let request = subscribe(Source::queue(rig.queue.as_str()), &rig.dead(), 5);
    let mut consuming = Consuming(broker.subscribe(request).await.expect("subscribes"));
    rig.publish([1, 2]).await;
    let mut taken = consuming.take(2).await;
    taken.pop().expect("two").ack();
    let said = || {
        let log = String::from_utf8_lossy(&log.0.lock().expect("held by nobody")).into_owned();
        log.lines().filter(|line| line.contains("message.overdue") && line.contains(&rig.queue)).count()
    };
    eventually("a warning", async || (said() > 0).then_some(())).await;
    assert_eq!(said(), 1, "what was acknowledged is not overdue");
    taken.into_iter().for_each(Delivery::ack);
    consuming.finish().await;
}
