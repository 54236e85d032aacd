//! The tree over a scripted broker, under paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::*;
use crate::scripted::{Scripted, Told};
use crate::{
    Consumer, Context, DurationExt, Failure, Incoming, Message, OnPanic, Origin, Reason, Retry,
    SettleErrorKind, Source, SubscribeErrorKind, handler_fn, known,
};

#[derive(Serialize, Deserialize)]
struct Do(String);

impl Message for Do {
    const NAME: &'static str = "do";
}

/// What the handler is told by the message's own text.
async fn obey(message: Do, cx: Context) -> Result<(), Failure> {
    match message.0.as_str() {
        "ok" => Ok(()),
        "fail" => Err(Failure::retry("told to fail")),
        "panic" => panic!("told to panic"),
        "late panic" => {
            tokio::time::sleep(1.secs()).await;
            panic!("told to panic late")
        }
        "hang" => std::future::pending().await,
        "slow" => {
            tokio::time::sleep(1.secs()).await;
            Ok(())
        }
        "second" if cx.attempt() == 2 => Ok(()),
        "second" => Err(Failure::retry_after(7.secs(), "not yet")),
        "snooze" => Err(Failure::snooze(9.secs())),
        "reject" => Err(Failure::reject("told to reject")),
        other => Err(Failure::ignore(format!("unknown order {other}"))),
    }
}

fn consumer() -> Consumer {
    Consumer::new("c", Source::queue("q"))
        .handler(|| handler_fn(obey))
        .retry(Retry::fixed(5.secs()).max_attempts(3))
}

async fn start(broker: &Scripted, consumer: Consumer) -> Tree {
    Supervisor::new("s").consumer(consumer).start(Arc::new(broker.clone())).await.expect("starts")
}

fn settled(told: &[Told]) -> Vec<Told> {
    let plumbing = |told: &&Told| match told {
        Told::Subscribed | Told::Stopped | Told::Closed | Told::Narrowed(_) | Told::Flushed => false,
        Told::Acked(_) | Told::Released(_) | Told::Requeued(..) | Told::Dead(..) => true,
    };
    told.iter().filter(plumbing).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn each_outcome_becomes_its_settlement() {
    let broker = Scripted::new();
    let tree = start(&broker, consumer()).await;
    for order in ["ok", "fail", "snooze", "reject", "whatever", "panic"] {
        broker.body(&format!("{order:?}"));
    }
    broker.body("{");
    let told = settled(&broker.until(|told| settled(told).len() == 7).await);
    let find = |token| {
        told.iter().find(|told| match told {
            Told::Acked(t) | Told::Released(t) | Told::Requeued(t, _) | Told::Dead(t, _) => *t == token,
            Told::Subscribed | Told::Stopped | Told::Closed | Told::Narrowed(_) | Told::Flushed => false,
        })
    };
    assert_eq!(find(1), Some(&Told::Acked(1)));
    let Some(Told::Requeued(_, requeue)) = find(2) else { panic!("{told:?}") };
    assert_eq!((requeue.after, requeue.headers.retry_count()), (5.secs(), Ok(1)));
    assert_eq!(requeue.headers.text(known::ERROR), Ok(Some("told to fail")));
    let Some(Told::Requeued(_, snoozed)) = find(3) else { panic!("{told:?}") };
    assert!(snoozed.after == 9.secs() && snoozed.headers.is_empty());
    assert_eq!(find(4), Some(&Told::Dead(4, Reason::Rejected)));
    assert_eq!(find(5), Some(&Told::Acked(5)));
    let Some(Told::Requeued(_, panicked)) = find(6) else { panic!("{told:?}") };
    assert_eq!(panicked.headers.text(known::ERROR), Ok(Some("told to panic")));
    assert_eq!(find(7), Some(&Told::Dead(7, Reason::Undecodable)));

    let stats = tree.child("c").expect("there").stats;
    assert_eq!((stats.handled, stats.dropped, stats.retried, stats.snoozed), (1, 1, 2, 1));
    assert_eq!(stats.dead, [(Reason::Rejected, 1), (Reason::Undecodable, 1)]);
    assert_eq!((stats.panics, stats.restarts), (1, 1));
    tree.drain().await.expect("drains");
    assert_eq!(broker.told().last(), Some(&Told::Closed));
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_goes_to_the_dead_letters_with_its_reason() {
    let broker = Scripted::new();
    let tree = start(&broker, consumer().timeout(2.secs()).concurrency(4)).await;
    for order in ["fail", "panic", "hang", "second"] {
        let mut incoming = Incoming::new(format!("{order:?}"), Origin::default());
        incoming.headers.set(known::RETRY_COUNT, if order == "second" { 1_u32 } else { 2 });
        broker.deliver(incoming);
    }
    let mut told = settled(&broker.until(|told| settled(told).len() == 4).await);
    told.sort_by_key(|told| format!("{told:?}"));
    let dead = |token, reason| Told::Dead(token, reason);
    let want =
        [Told::Acked(4), dead(1, Reason::Exhausted), dead(2, Reason::Panicked), dead(3, Reason::TimedOut)];
    assert_eq!(told, want);
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn never_asks_for_more_than_it_has_permits_for() {
    let broker = Scripted::new();
    for _ in 0..100 {
        broker.body("\"hang\"");
    }
    let tree = start(&broker, consumer().concurrency(2).max_in_flight(7)).await;
    tree.until_ready().await.expect("ready");
    tokio::time::sleep(1.secs()).await;
    assert_eq!(broker.script().ready.len(), 93, "seven were taken");
    let drained = Instant::now();
    tree.drain().await.expect("drains");
    assert_eq!(drained.elapsed(), 8.secs(), "the deadline of a stop");
    let released = settled(&broker.told());
    assert_eq!(released.len(), 7, "both that hang and all that waited: {released:?}");
    assert!(released.iter().all(|told| matches!(told, Told::Released(_))), "{released:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_is_in_flight_and_gives_back_the_rest() {
    let broker = Scripted::new();
    for _ in 0..3 {
        broker.body("\"slow\"");
    }
    let tree = start(&broker, consumer()).await;
    broker.until(|told| told.contains(&Told::Subscribed)).await;
    tokio::time::sleep(10.millis()).await;
    tree.drain().await.expect("drains");
    let told = broker.told();
    assert_eq!(settled(&told), [Told::Released(2), Told::Released(3), Told::Acked(1)]);
    let at = |what| told.iter().rposition(|told| *told == what).expect("told");
    assert!(at(Told::Acked(1)) < at(Told::Flushed) && at(Told::Flushed) < at(Told::Closed), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn acknowledgments_are_held_back_for_five_milliseconds_at_most() {
    let broker = Scripted::new();
    let tree = start(&broker, consumer().concurrency(2)).await;
    tree.until_ready().await.expect("ready");
    broker.body("\"hang\"");
    broker.body("\"ok\"");
    broker.until(|told| told.contains(&Told::Acked(2))).await;
    let acked = Instant::now();
    assert!(!broker.told().contains(&Told::Flushed), "one message is in flight: hold back");
    broker.until(|told| told.contains(&Told::Flushed)).await;
    assert!(acked.elapsed() <= 6.millis(), "{:?}", acked.elapsed());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_cannot_be_stored_is_tried_until_it_can() {
    let broker = Scripted::new();
    broker.script().store.extend([SettleErrorKind::NotStored; 4]);
    let tree = start(&broker, consumer()).await;
    broker.body("\"reject\"");
    broker.until(|told| settled(told) == [Told::Dead(1, Reason::Rejected)]).await;
    broker.script().store.push_back(SettleErrorKind::Gone);
    broker.body("\"fail\"");
    broker.body("\"ok\"");
    broker.until(|told| told.contains(&Told::Acked(3))).await;
    let stats = tree.child("c").expect("there").stats;
    assert_eq!((stats.late, stats.retried, stats.handled, stats.dead_total()), (1, 0, 1, 1));
    assert_eq!(
        settled(&broker.told()),
        [Told::Dead(1, Reason::Rejected), Told::Acked(3)],
        "nothing is settled twice"
    );
    tree.drain().await.expect("drains");
}

/// A broker that takes no copies costs the permits of those that wait for it, and no more.
#[tokio::test(start_paused = true)]
async fn a_copy_that_waits_to_be_stored_holds_up_no_other_message() {
    for order in ["reject", "fail", "panic"] {
        let broker = Scripted::new();
        broker.script().store.extend([SettleErrorKind::NotStored; 4]);
        let tree = start(&broker, consumer().concurrency(1).max_in_flight(2)).await;
        broker.body(&format!("{order:?}"));
        for _ in 0..5 {
            broker.body("\"ok\"");
        }
        let told = settled(&broker.until(|told| settled(told).len() == 6).await);
        let handled: Vec<_> = (2..=6).map(Told::Acked).collect();
        assert_eq!(told[..5], handled, "{order}");
        assert!(matches!(told[5], Told::Dead(1, _) | Told::Requeued(1, _)), "{order}: {told:?}");
        assert_eq!(broker.script().most_room, 2, "the copy keeps its permit");
        tree.drain().await.expect("drains");
    }
}

/// What is logged at `WARN` and above while it is the default.
#[derive(Clone, Default)]
struct Heard(Arc<std::sync::Mutex<String>>);

impl tracing::Subscriber for Heard {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut heard = self.0.lock().expect("not poisoned");
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            // writing to a string does not fail
            _ = std::fmt::Write::write_fmt(&mut *heard, format_args!("{value:?} "));
        });
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_a_stop_does_not_wait_for_is_given_back_under_its_right_name() {
    let heard = Heard::default();
    let _listening = tracing::subscriber::set_default(heard.clone());
    let broker = Scripted::new();
    broker.script().store.extend([SettleErrorKind::NotStored; 20]);
    let tree = start(&broker, consumer()).await;
    broker.body("\"fail\"");
    tokio::time::sleep(10.millis()).await;
    assert_eq!(broker.script().store.len(), 19, "it was tried");
    tree.drain().await.expect("drains");
    let told = broker.until(|told| !settled(told).is_empty()).await;
    assert_eq!(settled(&told), [Told::Released(1)]);
    let heard = heard.0.lock().expect("not poisoned").clone();
    assert!(heard.contains("message.abandoned") && !heard.contains("this is a bug"), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_stored_though_its_consumer_did_not_wait_for_it() {
    let broker = Scripted::new();
    // 100 ms doubling to 10 s: the last of them fails after the deadline of a stop
    broker.script().store.extend([SettleErrorKind::NotStored; 8]);
    let tree = start(&broker, consumer()).await;
    broker.body("\"reject\"");
    tokio::time::sleep(10.millis()).await;
    assert_eq!(broker.script().store.len(), 7, "it was tried");
    let stopped = Instant::now();
    tree.stop("c").await.expect("there");
    let told = broker.until(|told| !settled(told).is_empty()).await;
    assert!(stopped.elapsed() > 8.secs(), "{:?}", stopped.elapsed());
    assert_eq!(settled(&told), [Told::Dead(1, Reason::Rejected)]);
    assert!(told.contains(&Told::Closed), "{told:?}");
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_any_length_spends_no_intensity() {
    let broker = Scripted::new();
    broker.script().away = Some(SubscribeErrorKind::Unreachable);
    let strict = RestartIntensity::new(0, 3600.secs());
    let tree = Supervisor::new("s")
        .intensity(strict)
        .consumer(consumer())
        .start(Arc::new(broker.clone()))
        .await
        .expect("starts");
    tokio::time::sleep(24.hours()).await;
    assert!(!tree.health().ready);
    let Phase::BackingOff { why, outage, .. } = tree.child("c").expect("there").phase else {
        panic!("{tree:?}")
    };
    assert!(outage && why.contains("scripted"), "{why}");
    broker.script().away = None;
    let back = Instant::now();
    tree.until_ready().await.expect("ready");
    assert!(back.elapsed() <= 3.secs(), "{:?}", back.elapsed());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn one_restart_too_many_ends_the_tree_with_the_reason() {
    let broker = Scripted::new();
    broker.script().away = Some(SubscribeErrorKind::Mismatch);
    let intensity = RestartIntensity::new(3, 60.secs());
    let tree = Supervisor::new("s")
        .intensity(intensity)
        .consumer(consumer())
        .start(Arc::new(broker.clone()))
        .await
        .expect("starts");
    let error = tree.ended().await.expect_err("gave up").to_string();
    assert!(error.contains("`s` gave up") && error.contains("`c`") && error.contains("scripted"), "{error}");
    let status = tree.child("c").expect("there");
    assert!(matches!(status.phase, Phase::Failed(_)), "{status:?}");
    assert_eq!(status.stats.restarts, 3);
}

#[tokio::test(start_paused = true)]
async fn every_end_of_a_subscription_is_followed_by_another() {
    let broker = Scripted::new();
    let tree = start(&broker, consumer()).await;
    for round in 1..=20 {
        broker.until(|told| told.iter().filter(|told| **told == Told::Subscribed).count() == round).await;
        tree.until_ready().await.expect("ready");
        broker.body("\"ok\"");
        broker.until(|told| told.contains(&Told::Acked(round as u64))).await;
        broker.end(if round % 2 == 0 { SubscribeErrorKind::Ended } else { SubscribeErrorKind::NotFound });
        // a healthy while: neither delays nor intensity add up
        tokio::time::sleep(60.secs()).await;
    }
    assert_eq!(tree.child("c").expect("there").stats.handled, 20);
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_panic_replaces_the_handler_and_nothing_else() {
    let made = Arc::new(AtomicU32::new(0));
    let broker = Scripted::new();
    let count = Arc::clone(&made);
    let consumer = consumer().concurrency(2).handler(move || {
        count.fetch_add(1, Ordering::Relaxed);
        handler_fn(obey)
    });
    let tree = start(&broker, consumer).await;
    tree.until_ready().await.expect("ready");
    for order in ["slow", "panic", "ok"] {
        broker.body(&format!("{order:?}"));
    }
    broker.until(|told| settled(told).len() == 3).await;
    assert_eq!(made.load(Ordering::Relaxed), 2);
    assert!(broker.told().contains(&Told::Acked(1)), "its neighbour finished");
    assert_eq!(
        broker.told().iter().filter(|told| **told == Told::Subscribed).count(),
        1,
        "same subscription"
    );
    tree.drain().await.expect("drains");
}

/// Until the fresh handler is made nothing is handled: a consumer that is deaf must not look ready.
#[tokio::test(start_paused = true)]
async fn a_factory_that_takes_its_time_after_a_panic_is_not_ready() {
    let (broker, made) = (Scripted::new(), Arc::new(AtomicU32::new(0)));
    let consumer = consumer().try_handler(move || {
        let again = made.fetch_add(1, Ordering::Relaxed) > 0;
        async move {
            if again {
                tokio::time::sleep(3.secs()).await;
            }
            Ok::<_, std::fmt::Error>(handler_fn(obey))
        }
    });
    let tree = start(&broker, consumer).await;
    tree.until_ready().await.expect("ready");
    let mut events = tree.events();
    broker.body("\"ok\"");
    broker.body("\"panic\"");
    broker.until(|told| settled(told).len() == 2).await;
    tokio::time::sleep(1.secs()).await;
    let health = tree.health();
    assert!(!health.ready && health.to_string().contains("panicked"), "{health}");
    assert_eq!(
        events.recv().await.expect("runs").what,
        EventKind::HandlerPanicked { why: "told to panic".to_owned() }
    );
    assert_eq!(events.recv().await.expect("runs").what, EventKind::HandlerReplaced);
    assert!(tree.health().ready, "{}", tree.health());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_only_panics_is_given_up() {
    let broker = Scripted::new();
    let intensity = RestartIntensity::new(4, 60.secs());
    let tree = Supervisor::new("s")
        .intensity(intensity)
        .consumer(consumer())
        .start(Arc::new(broker.clone()))
        .await
        .expect("starts");
    // poison among healthy messages is the message's fault, however much of it there is
    for _ in 0..50 {
        broker.body("\"ok\"");
        broker.body("\"panic\"");
    }
    broker.until(|told| settled(told).len() == 100).await;
    assert_eq!(tree.child("c").expect("there").stats.restarts, 50);
    for _ in 0..6 {
        broker.body("\"panic\"");
    }
    let error = tree.ended().await.expect_err("gave up").to_string();
    assert!(error.contains("panics on every message"), "{error}");
}

/// They became due together: a message that has panicked before says nothing new about the handler.
#[tokio::test(start_paused = true)]
async fn retries_of_poison_that_come_in_a_row_are_not_the_handlers_fault() {
    let broker = Scripted::new();
    let tree = Supervisor::new("s")
        .intensity(RestartIntensity::new(4, 60.secs()))
        .consumer(consumer())
        .start(Arc::new(broker.clone()))
        .await
        .expect("starts");
    for _ in 0..50 {
        let mut again =
            Incoming::new("\"panic\"".to_owned(), Origin { source: "q".into(), ..Origin::default() });
        again.headers.set(known::RETRY_COUNT, 1_i64);
        broker.deliver(again);
    }
    broker.until(|told| settled(told).len() == 50).await;
    assert!(tree.health().ready, "{}", tree.health());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn late_panics_of_a_handler_that_was_replaced_are_not_its_successors() {
    let broker = Scripted::new();
    let strict = RestartIntensity::new(0, 3600.secs());
    let supervisor = Supervisor::new("s").intensity(strict).consumer(consumer().concurrency(3));
    let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
    broker.body("\"ok\"");
    broker.until(|told| told.contains(&Told::Acked(1))).await;
    for _ in 0..3 {
        broker.body("\"late panic\"");
    }
    broker.until(|told| settled(told).len() == 4).await;
    let stats = tree.child("c").expect("there").stats;
    assert_eq!(
        (stats.panics, stats.restarts),
        (3, 3),
        "each of them is told, and none is a fault of the consumer"
    );
    tree.drain().await.expect("did not give up");
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_stay_after_a_panic() {
    let broker = Scripted::new();
    let tree = start(&broker, consumer().on_panic(OnPanic::Continue)).await;
    for _ in 0..50 {
        broker.body("\"panic\"");
    }
    broker.until(|told| settled(told).len() == 50).await;
    let stats = tree.child("c").expect("there").stats;
    assert_eq!((stats.panics, stats.restarts), (50, 0));
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn tasks_are_restarted_and_may_end() {
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let broker = Scripted::new();
    let supervisor = Supervisor::new("s").task("t", move || {
        let run = count.fetch_add(1, Ordering::Relaxed);
        async move {
            match run {
                0 => Err(std::fmt::Error),
                1 => panic!("second run"),
                _ => Ok(()),
            }
        }
    });
    let tree = supervisor.start(Arc::new(broker)).await.expect("starts");
    tokio::time::sleep(60.secs()).await;
    assert_eq!(runs.load(Ordering::Relaxed), 3);
    tree.drain().await.expect("drains");
}

#[tokio::test]
async fn mistakes_are_named_before_anything_starts() {
    let problem = |supervisor: Supervisor| async {
        supervisor.start(Arc::new(Scripted::new())).await.expect_err("refused").to_string()
    };
    let text = problem(Supervisor::new("s").consumer(Consumer::new("c", "q"))).await;
    assert!(text.contains("`c` has no handler"), "{text}");
    let text = problem(Supervisor::new("s").consumer(consumer()).consumer(consumer())).await;
    assert!(text.contains("two children named `c`"), "{text}");
    let text = problem(Supervisor::new("s").consumer(consumer().dead_letter("q"))).await;
    assert!(text.contains("own source `q`"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn any_tower_layer_works() {
    let broker = Scripted::new();
    let layered = consumer()
        .layer(tower::layer::layer_fn(|inner: crate::Inner| tower::limit::ConcurrencyLimit::new(inner, 1)))
        .layer(tower::timeout::TimeoutLayer::new(2.secs()))
        .concurrency(4);
    let tree = start(&broker, layered).await;
    for order in ["hang", "ok", "reject"] {
        broker.body(&format!("{order:?}"));
    }
    let told = settled(&broker.until(|told| settled(told).len() == 3).await);
    assert!(told.contains(&Told::Acked(2)) && told.contains(&Told::Dead(3, Reason::Rejected)), "{told:?}");
    let Some(Told::Requeued(1, requeue)) = told.iter().find(|told| matches!(told, Told::Requeued(..))) else {
        panic!("{told:?}")
    };
    assert!(requeue.headers.text(known::ERROR).expect("text").expect("set").contains("timed out"));
    tree.drain().await.expect("drains");
}

/// It is no error that a layer could make nothing of: the message would be acknowledged, and its handler kept.
#[tokio::test(start_paused = true)]
async fn a_panic_goes_through_layers_as_a_panic() {
    let broker = Scripted::new();
    let swallow =
        |inner: crate::Inner| tower::ServiceExt::then(inner, |_| async { Ok::<_, crate::BoxError>(()) });
    let tree = start(&broker, consumer().layer(tower::layer::layer_fn(swallow))).await;
    for order in ["fail", "panic"] {
        broker.body(&format!("{order:?}"));
    }
    let told = settled(&broker.until(|told| settled(told).len() == 2).await);
    let [Told::Acked(1), Told::Requeued(2, requeue)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(requeue.headers.text(known::ERROR), Ok(Some("told to panic")));
    let stats = tree.child("c").expect("there").stats;
    assert_eq!((stats.handled, stats.panics, stats.restarts), (1, 1, 1));
    tree.drain().await.expect("drains");
}

#[test]
fn durations_are_the_documented_ones() {
    assert_eq!(RestartIntensity::default(), RestartIntensity::new(10, Duration::from_secs(300)));
}

/// Deliveries by their order and how often they were delivered before.
fn counted(broker: &Scripted, deliveries: &[(&str, u32)]) {
    for (order, count) in deliveries {
        let mut incoming = Incoming::new(format!("{order:?}"), Origin::default());
        incoming.delivery_count = Some(*count);
        broker.script().ready.push_back(incoming);
    }
    broker.wake();
}

#[tokio::test(start_paused = true)]
async fn a_suspect_runs_with_nothing_else_unsettled() {
    let broker = Scripted::new();
    counted(&broker, &[("slow", 0), ("slow", 1), ("slow", 2), ("slow", 3), ("slow", 1)]);
    let tree = start(&broker, consumer().concurrency(4)).await;
    let told = broker.until(|told| told.contains(&Told::Acked(5))).await;
    let mut want = vec![
        Told::Subscribed,
        // the first is none: the rest comes along, and suspects in company go back
        Told::Narrowed(false),
        Told::Narrowed(true),
        Told::Released(3),
        Told::Released(4),
        Told::Acked(1),
        Told::Acked(2),
        Told::Acked(5),
        Told::Acked(6),
    ];
    assert!(told.iter().take(5).eq(want.iter().take(5)), "{told:?}");
    // the broker brings it again
    counted(&broker, &[("slow", 2)]);
    let told = broker.until(|told| told.contains(&Told::Acked(6))).await;
    let at = |what: &Told| told.iter().position(|told| told == what);
    assert!(at(&Told::Acked(6)) > at(&Told::Flushed) && at(&Told::Flushed) > at(&Told::Acked(5)), "{told:?}");
    want.sort_by_key(|told| format!("{told:?}"));
    let mut told: Vec<_> = told.into_iter().filter(|told| *told != Told::Flushed).collect();
    told.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, want, "nothing else was said");
    // nothing more is taken until the suspect is settled, and then one at a time
    counted(&broker, &[("slow", 4), ("ok", 0), ("ok", 0)]);
    let told = broker.until(|told| told.contains(&Told::Acked(9))).await;
    let after = told.iter().rposition(|told| *told == Told::Acked(7)).expect("it was run");
    assert_eq!(
        told[after + 1..].iter().filter(|told| **told == Told::Narrowed(false)).count(),
        1,
        "{told:?}"
    );
    // one that comes in company all the same is kept the second time, and waits for the others
    counted(&broker, &[("slow", 0), ("slow", 2)]);
    broker.until(|told| told.contains(&Told::Released(11)) && told.contains(&Told::Acked(10))).await;
    counted(&broker, &[("slow", 0), ("slow", 2), ("slow", 0)]);
    let told = broker.until(|told| told.contains(&Told::Acked(13))).await;
    let at = |what: &Told| told.iter().position(|told| told == what).expect("is there");
    assert!(
        at(&Told::Acked(13)) > at(&Told::Acked(12)) && at(&Told::Acked(13)) > at(&Told::Acked(14)),
        "{told:?}"
    );
    tree.drain().await.expect("drains");
}

/// Its own copy, and those of others: whichever is not stored is unsettled.
#[tokio::test(start_paused = true)]
async fn a_suspect_waits_for_copies_and_others_for_its_own() {
    let broker = Scripted::new();
    broker.script().store.extend([SettleErrorKind::NotStored; 5]);
    counted(&broker, &[("reject", 0), ("reject", 2)]);
    let tree = start(&broker, consumer().concurrency(4)).await;
    broker.until(|told| told.contains(&Told::Released(2))).await;
    counted(&broker, &[("reject", 2)]);
    let told = broker.until(|told| settled(told).len() == 3).await;
    let rejected = |token| Told::Dead(token, Reason::Rejected);
    assert_eq!(settled(&told), [Told::Released(2), rejected(1), rejected(3)]);
    broker.script().store.extend([SettleErrorKind::NotStored; 5]);
    counted(&broker, &[("reject", 2), ("ok", 0)]);
    let told = broker.until(|told| settled(told).len() == 5).await;
    assert_eq!(settled(&told)[3..], [rejected(4), Told::Acked(5)]);
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_kills_is_dead_lettered_untried_at_the_limit() {
    let broker = Scripted::new();
    counted(&broker, &[("hang", 7), ("ok", 6)]);
    let tree = start(&broker, consumer().crash_limit(7)).await;
    broker.until(|told| told.contains(&Told::Acked(2))).await;
    assert_eq!(settled(&broker.told()), [Told::Dead(1, Reason::Crashed), Told::Acked(2)]);
    tree.drain().await.expect("drains");

    let broker = Scripted::new();
    counted(&broker, &[("ok", 2), ("ok", 3), ("ok", 1000)]);
    // less than three would blame neighbours
    let tree = start(&broker, consumer().crash_limit(1)).await;
    let told = broker.until(|told| settled(told).len() == 3).await;
    assert_eq!(
        settled(&told),
        [Told::Acked(1), Told::Dead(2, Reason::Crashed), Told::Dead(3, Reason::Crashed)]
    );
    tree.drain().await.expect("drains");

    let broker = Scripted::new();
    counted(&broker, &[("ok", u32::MAX)]);
    let tree = start(&broker, consumer().crash_limit(None)).await;
    broker.until(|told| told.contains(&Told::Acked(1))).await;
    tree.drain().await.expect("drains");
}
