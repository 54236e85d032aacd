//! Strategies, nested and dynamic children, control, events and health, over a scripted broker under paused time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::*;
use crate::scripted::{Scripted, Told};
use crate::{
    ConnectErrorKind, Consumer, Context, DurationExt, Failure, Message, Outgoing, PublishErrorKind,
    Publisher, Source, SubscribeErrorKind, handler_fn,
};

#[derive(Serialize, Deserialize)]
struct Wait(u64);

impl Message for Wait {
    const NAME: &'static str = "wait";
}

async fn wait(message: Wait, _: Context) -> Result<(), Failure> {
    tokio::time::sleep(message.0.millis()).await;
    Ok(())
}

fn consumer(name: &str) -> Consumer {
    Consumer::new(name, Source::queue("q")).handler(|| handler_fn(wait))
}

/// Writes down its starts and its stops; ends with a fault when told.
#[derive(Clone, Default)]
struct Diary {
    lines: Arc<Mutex<Vec<String>>>,
    fail: Arc<Mutex<Option<String>>>,
    poke: Arc<tokio::sync::Notify>,
}

impl Diary {
    fn child(&self, name: &'static str) -> Child {
        let diary = self.clone();
        Child::task_until(name, move |mut stop| {
            let diary = diary.clone();
            async move {
                diary.write(format!("+{name}"));
                loop {
                    let poked = diary.poke.notified();
                    if diary.fail.lock().expect("lock").take_if(|who| who == name).is_some() {
                        diary.write(format!("!{name}"));
                        return Err(std::fmt::Error);
                    }
                    tokio::select! {
                        () = stop.told() => break,
                        () = poked => {}
                    }
                }
                diary.write(format!("-{name}"));
                Ok(())
            }
        })
        .restart(Restart::Permanent)
    }

    fn write(&self, line: String) {
        self.lines.lock().expect("lock").push(line);
    }

    fn fail(&self, name: &str) {
        *self.fail.lock().expect("lock") = Some(name.to_owned());
        self.poke.notify_waiters();
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.lines.lock().expect("lock")).join(" ")
    }
}

async fn settle() {
    tokio::time::sleep(1.secs()).await;
}

#[tokio::test(start_paused = true)]
async fn strategies_restart_the_right_siblings_in_order() {
    let cases = [
        (Strategy::OneForOne, "!b +b"),
        (Strategy::RestForOne, "!b -d -c +b +c +d"),
        (Strategy::OneForAll, "!b -d -c -a +a +b +c +d"),
    ];
    for (strategy, want) in cases {
        let diary = Diary::default();
        let children = ["a", "b", "c", "d"].map(|name| diary.child(name));
        let supervisor =
            children.into_iter().fold(Supervisor::new("s").strategy(strategy), Supervisor::child);
        let tree = supervisor.start(Arc::new(Scripted::new())).await.expect("starts");
        settle().await;
        assert_eq!(diary.take(), "+a +b +c +d");
        diary.fail("b");
        settle().await;
        assert_eq!(diary.take(), want, "{strategy:?}");
        tree.drain().await.expect("drains");
        assert_eq!(diary.take(), "-d -c -b -a");
    }
}

#[tokio::test(start_paused = true)]
async fn giving_up_climbs_to_the_root_with_the_whole_chain_of_reasons() {
    let strict = |name: &'static str| Supervisor::new(name).intensity(RestartIntensity::new(1, 3600.secs()));
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let failing = Child::task("leaf", move || {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Err(std::io::Error::other("disk on fire")))
    });
    let tree =
        strict("root").supervisor(strict("inner").child(failing)).start(Arc::new(Scripted::new())).await;
    let tree = tree.expect("starts");
    let error = tree.ended().await.expect_err("gave up").to_string();
    for part in ["`root` gave up", "`inner`", "`inner` gave up", "`leaf`", "disk on fire"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(
        runs.load(Ordering::Relaxed),
        4,
        "two starts of the leaf for each of two of the inner supervisor"
    );
    assert!(!tree.health().live, "{}", tree.health());
}

#[tokio::test(start_paused = true)]
async fn a_child_that_does_not_stop_is_abandoned_then_killed() {
    let stubborn = Child::task_until("stubborn", |_| std::future::pending::<Result<(), std::fmt::Error>>());
    let broker = Scripted::new();
    let supervisor = Supervisor::new("s")
        .child(Child::consumer(consumer("c").concurrency(2)).shutdown_timeout(3.secs()))
        .child(stubborn.shutdown_timeout(5.secs()));
    let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
    let mut events = tree.events();
    broker.body("1000000");
    broker.body("500");
    settle().await;
    let began = Instant::now();
    tree.drain().await.expect("drains");
    assert_eq!(
        began.elapsed(),
        5.secs(),
        "the consumer's 3 s pass while the one that was added last is waited for"
    );
    let told = broker.told();
    assert!(told.contains(&Told::Acked(2)) && told.contains(&Told::Released(1)), "{told:?}");
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push((event.path.to_string(), event.what));
    }
    assert!(seen.contains(&("s/stubborn".into(), EventKind::Killed)), "{seen:?}");
    assert!(seen.contains(&("s/c".into(), EventKind::Abandoned)), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn children_come_and_go_while_it_runs() {
    let diary = Diary::default();
    let supervisor = Supervisor::new("s").supervisor(Supervisor::new("inner").child(diary.child("a")));
    let tree = supervisor.start(Arc::new(Scripted::new())).await.expect("starts");
    settle().await;
    tree.add("inner", diary.child("b")).await.expect("added");
    tree.add("", diary.child("c")).await.expect("added");
    settle().await;
    assert_eq!(diary.take(), "+a +b +c");
    let error = tree.add("inner", diary.child("b")).await.expect_err("twice").to_string();
    assert!(error.contains("`b`") && error.contains("remove it first"), "{error}");

    tree.stop("inner/a").await.expect("stopped");
    settle().await;
    assert_eq!((diary.take().as_str(), tree.child("inner/a").expect("there").phase), ("-a", Phase::Stopped));
    tree.start("inner/a").await.expect("started");
    tree.restart("inner/b").await.expect("restarted");
    settle().await;
    assert_eq!(diary.take(), "+a -b +b");
    tree.remove("inner/b").await.expect("removed");
    settle().await;
    assert!(tree.child("inner/b").is_none() && diary.take() == "-b");
    tree.restart("inner").await.expect("restarted");
    settle().await;
    assert_eq!(diary.take(), "-a +a", "a whole subtree");
    for (path, part) in
        [("inner/x", "no child named `x`"), ("x/y", "no child at `x`"), ("c/d", "not a running supervisor")]
    {
        let error = tree.stop(path).await.expect_err("nothing there").to_string();
        assert!(error.contains(part), "{error}");
    }
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_paused_consumer_takes_nothing_until_it_is_resumed() {
    let broker = Scripted::new();
    let tree =
        Supervisor::new("s").consumer(consumer("c")).start(Arc::new(broker.clone())).await.expect("starts");
    tree.until_ready().await.expect("ready");
    broker.body("500");
    settle().await;
    tree.pause("c").expect("paused");
    settle().await;
    assert!(tree.child("c").expect("there").phase == Phase::Paused && !tree.health().ready);
    broker.body("1");
    settle().await;
    assert_eq!(broker.script().ready.len(), 1, "nothing is taken");
    tree.restart("c").await.expect("restarted");
    settle().await;
    assert_eq!(tree.child("c").expect("there").phase, Phase::Paused, "a restart does not resume it");
    tree.resume("c").expect("resumed");
    broker.until(|told| told.contains(&Told::Acked(2))).await;
    assert!(tree.pause("nobody").is_err());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn concurrency_and_prefetch_change_while_it_runs() {
    let broker = Scripted::new();
    let tree =
        Supervisor::new("s").consumer(consumer("c").max_in_flight(10)).start(Arc::new(broker.clone())).await;
    let tree = tree.expect("starts");
    tree.until_ready().await.expect("ready");
    for _ in 0..8 {
        broker.body("10000");
    }
    settle().await;
    tree.set_concurrency("c", 8).expect("set");
    let began = Instant::now();
    broker.until(|told| told.iter().filter(|told| matches!(told, Told::Acked(_))).count() == 8).await;
    assert!(began.elapsed() <= 10.secs(), "side by side: {:?}", began.elapsed());
    tree.set_max_in_flight("c", 500).expect("set");
    settle().await;
    tree.until_ready().await.expect("ready");
    broker.body("0");
    settle().await;
    assert_eq!(broker.script().most_room, 500);
    assert_eq!(tree.child("c").expect("there").stats.restarts, 0, "not a fault");
    tree.drain().await.expect("drains");
}

/// The end of a subscription takes as long as the last settlements do, and the broker that ended it is often away.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_ends_is_not_ready_before_its_end() {
    let broker = Scripted::new();
    let supervisor = Supervisor::new("shop").consumer(consumer("billing"));
    let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
    tree.until_ready().await.expect("ready");
    broker.stick(true);
    broker.end(SubscribeErrorKind::Unreachable);
    settle().await;
    let health = tree.health();
    let why =
        "shop/billing: takes no more, and settles what it handled before it starts again: subscription ended";
    assert!(health.live && !health.ready && health.to_string().contains(why), "{health}");
    broker.stick(false);
    tree.until_ready().await.expect("ready");
    assert_eq!(tree.child("billing").expect("there").trouble, None);
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn health_says_why_it_is_not_ready_and_events_name_the_cause() {
    let broker = Scripted::new();
    broker.script().away = Some(SubscribeErrorKind::Unreachable);
    let optional = Child::consumer(consumer("optional")).required(false);
    let supervisor = Supervisor::new("shop").consumer(consumer("billing")).child(optional);
    let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
    let mut events = tree.events();
    tokio::time::sleep(12.secs()).await;
    let health = tree.health();
    assert!(health.live && !health.ready && health.why.len() == 1, "{health:?}");
    assert!(health.to_string().contains("shop/billing: broker unreachable for 12 s"), "{health}");
    broker.script().away = None;
    tree.until_ready().await.expect("ready");
    broker.end(SubscribeErrorKind::NotFound);
    let cause = async {
        loop {
            let event = events.recv().await.expect("the tree runs");
            if let EventKind::Failed { why, outage: false } = event.what {
                return why;
            }
        }
    };
    assert_eq!(cause.await, "subscription ended: scripted end");
    assert_eq!(tree.health().ready, tree.child("billing").expect("there").phase == Phase::Running);
    let text = tree.status().to_string();
    assert!(text.starts_with("supervisor shop - running\n  consumer billing - "), "{text}");
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn silence_with_a_backlog_is_found_told_and_ended() {
    let broker = Scripted::new();
    let tree =
        Supervisor::new("s").consumer(consumer("c")).start(Arc::new(broker.clone())).await.expect("starts");
    tree.until_ready().await.expect("ready");
    let mut events = tree.events();
    // messages wait, and the subscription hands out nothing
    broker.script().backlog = Some(7);
    let began = Instant::now();
    let mut changed = tree.monitor().node_changed();
    while tree.health().ready {
        changed.changed().await.expect("the tree runs");
    }
    assert!(began.elapsed() <= 15.secs(), "{:?}", began.elapsed());
    assert!(tree.health().to_string().contains("silent, with 7 messages waiting"), "{}", tree.health());
    broker.until(|told| told.iter().filter(|told| **told == Told::Subscribed).count() == 2).await;
    broker.script().backlog = Some(0);
    tree.until_ready().await.expect("ready");
    let mut whys = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let EventKind::Failed { why, .. } = event.what {
            whys.push(why);
        }
    }
    assert!(whys.len() == 1 && whys[0].contains("went deaf"), "{whys:?}");
    tree.drain().await.expect("drains");
}

/// In real time: the watchdog has a thread of its own, because the runtime's is the one that is blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_is_named_within_two_seconds() {
    async fn block(message: Wait, _: Context) -> Result<(), Failure> {
        std::thread::sleep(message.0.millis());
        Ok(())
    }
    let broker = Scripted::new();
    let blocking = Consumer::new("c", Source::queue("q")).handler(|| handler_fn(block));
    let tree = Supervisor::new("s").consumer(blocking).start(Arc::new(broker.clone())).await.expect("starts");
    tree.until_ready().await.expect("ready");
    let mut events = tree.events();
    let began = std::time::Instant::now();
    broker.body("2600");
    let named = loop {
        if let EventKind::HandlerBlocked { handler, .. } = events.recv().await.expect("the tree runs").what {
            break handler;
        }
    };
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(
        named.contains("Wait") && tree.health().to_string().contains("blocks its thread"),
        "{}",
        tree.health()
    );
    tree.until_ready().await.expect("ready again");
    tree.drain().await.expect("drains");
}

#[tokio::test]
async fn ten_thousand_failed_starts_stay_within_the_intensity() {
    tokio::time::pause();
    let starts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&starts);
    let supervisor =
        Supervisor::new("s").intensity(RestartIntensity::new(9_999, 100_000.hours())).task("t", move || {
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err(std::fmt::Error))
        });
    let began = Instant::now();
    let tree = supervisor.start(Arc::new(Scripted::new())).await.expect("starts");
    tree.ended().await.expect_err("gave up");
    assert_eq!(starts.load(Ordering::Relaxed), 10_000);
    assert!(began.elapsed() > 20_000.secs(), "they wait for one another: {:?}", began.elapsed());
}

/// The application's own actor, restarted like any other child.
struct Own;

impl ractor::Actor for Own {
    type Msg = ();
    type State = Arc<AtomicU32>;
    type Arguments = Arc<AtomicU32>;

    async fn pre_start(
        &self,
        myself: ractor::ActorRef<()>,
        runs: Arc<AtomicU32>,
    ) -> Result<Arc<AtomicU32>, ractor::ActorProcessingErr> {
        runs.fetch_add(1, Ordering::Relaxed);
        myself.cast(())?;
        Ok(runs)
    }

    async fn handle(
        &self,
        _: ractor::ActorRef<()>,
        (): (),
        runs: &mut Arc<AtomicU32>,
    ) -> Result<(), ractor::ActorProcessingErr> {
        assert!(runs.load(Ordering::Relaxed) != 1, "the first run panics");
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_applications_own_actor_is_a_child() {
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let own = Child::actor("own", move |supervisor| {
        let count = Arc::clone(&count);
        async move {
            use ractor::Actor as _;
            Ok(Own::spawn_linked(None, Own, count, supervisor).await?.0.get_cell())
        }
    });
    let tree = Supervisor::new("s").child(own).start(Arc::new(Scripted::new())).await.expect("starts");
    settle().await;
    assert_eq!((runs.load(Ordering::Relaxed), tree.child("own").expect("there").stats.restarts), (2, 1));
    tree.drain().await.expect("drains");
}

/// What was said of this child, in words.
fn said(events: &mut tokio::sync::broadcast::Receiver<Event>, path: &str) -> Vec<String> {
    let word =
        |event: Event| format!("{:?}", event.what).split([' ', '{']).next().unwrap_or_default().to_owned();
    std::iter::from_fn(|| events.try_recv().ok()).filter(|event| &*event.path == path).map(word).collect()
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_nobodys_fault_and_restarts_what_lives_on_it() {
    let broker = Scripted::new();
    let diary = Diary::default();
    let supervisor =
        Supervisor::new("s").strategy(Strategy::RestForOne).intensity(RestartIntensity::new(0, 3600.secs()));
    let supervisor = supervisor
        .child(diary.child("before"))
        .child(Child::connection("rabbit"))
        .child(diary.child("after"));
    let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
    let mut events = tree.events();
    tree.until_ready().await.expect("ready");
    assert_eq!(
        (tree.status().children[1].kind, tree.status().children[1].phase.clone()),
        (Kind::Connection, Phase::Running)
    );

    broker.close_connections(Some(ConnectErrorKind::Unreachable));
    settle().await;
    assert_eq!(said(&mut events, "s/rabbit")[..3], ["Running", "Failed", "BackingOff"]);
    tokio::time::sleep(1.hours()).await;
    let health = tree.health().to_string();
    assert!(
        health.contains("s/rabbit: broker unreachable for 36") && health.contains("connect failed: scripted"),
        "{health}"
    );
    broker.close_connections(None);
    tree.until_ready().await.expect("ready again");
    settle().await;
    assert_eq!(
        *diary.lines.lock().expect("lock"),
        ["+before", "+after", "-after", "+after"],
        "only what comes after it"
    );
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_refused_spends_the_intensity() {
    let broker = Scripted::new();
    broker.close_connections(Some(ConnectErrorKind::Refused));
    let supervisor = Supervisor::new("s").intensity(RestartIntensity::new(2, 3600.secs()));
    let tree =
        supervisor.child(Child::connection("rabbit")).start(Arc::new(broker.clone())).await.expect("starts");
    let ended = tree.until_signal().await.expect_err("gives up").to_string();
    assert!(ended.contains("`rabbit`: connect failed: scripted"), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_supervised_publisher_says_when_the_broker_is_away() {
    let broker = Scripted::new();
    let (child, publisher) = Child::publisher("audit");
    let send = async || publisher.send(Outgoing::new("q", "{}")).await.map_err(|error| error.kind());
    assert_eq!(send().await, Err(PublishErrorKind::Unreachable), "not started yet");
    let strict = RestartIntensity::new(0, 3600.secs());
    let tree = Supervisor::new("s")
        .intensity(strict)
        .child(child)
        .start(Arc::new(broker.clone()))
        .await
        .expect("starts");
    let mut events = tree.events();
    tree.until_ready().await.expect("ready");
    assert_eq!(send().await, Ok(()));

    // what was unroutable says nothing about the broker; what is unknown is looked into, and all is well
    broker.script().publish.extend([PublishErrorKind::Unroutable, PublishErrorKind::Unknown]);
    assert_eq!(send().await, Err(PublishErrorKind::Unroutable));
    assert_eq!(send().await, Err(PublishErrorKind::Unknown));
    settle().await;
    assert!(tree.health().ready && send().await.is_ok());

    broker.script().publish.push_back(PublishErrorKind::Unreachable);
    broker.close_connections(Some(ConnectErrorKind::Unreachable));
    assert_eq!(send().await, Err(PublishErrorKind::Unreachable));
    tokio::time::sleep(10.secs()).await;
    let error = publisher.send(Outgoing::new("q", "{}")).await.expect_err("away").to_string();
    assert!(error.contains("publisher `audit` is not running"), "{error}");
    assert!(tree.health().to_string().contains("s/audit: broker unreachable"), "{}", tree.health());
    broker.close_connections(None);
    tree.until_ready().await.expect("ready again");
    assert_eq!(send().await, Ok(()));
    let said = said(&mut events, "s/audit");
    assert!(
        said.starts_with(&["Started".to_owned(), "Running".to_owned()]) || said[0] == "Running",
        "{said:?}"
    );
    assert_eq!(said.iter().filter(|word| *word == "Running").count(), 2, "{said:?}");
    tree.drain().await.expect("drains");
    assert_eq!(send().await, Err(PublishErrorKind::Unreachable));
}
