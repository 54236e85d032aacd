//! A message that takes its whole process down, again and again, until it is set aside; its neighbours are not.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::types::AMQPValue;
use steadfast::{Consumer, Context, Failure, Handle, Handler, Message, Supervisor};
use steadfast_amqp::Queue;
use steadfast_core::{Broker, Outgoing, Source, known};
use steadfast_tests::{Running, terminate};

use crate::rig::{Rig, body, url};

const MESSAGES: usize = 500;
const KILLER: usize = 217;
const PREFETCH: usize = 50;
/// [`Consumer::crash_limit`] by default.
const LIMIT: usize = 5;

#[derive(serde::Serialize, serde::Deserialize, Message)]
#[message(name = "load")]
struct Load {
    id: usize,
}

#[derive(Handler)]
#[handler(Load)]
struct Loads;

impl Handle<Load> for Loads {
    async fn handle(&self, load: Load, _: &Context) -> Result<(), Failure> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if load.id == KILLER {
            std::process::abort();
        }
        println!("done {}", load.id);
        Ok(())
    }
}

/// The worker that dies, when the test below starts it.
#[test]
#[ignore = "run by the test below in a process of its own"]
fn work() {
    // the harness has written half a line
    println!();
    let [url, queue] = ["TEST_URL", "TEST_QUEUE"].map(|name| std::env::var(name).expect(name));
    tracing_subscriber::fmt().with_writer(std::io::stdout).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = runtime.expect("builds").block_on(async {
        let dead = format!("{queue}.dead");
        let consumer = Consumer::new("loads", Source::queue(queue)).handler(|| Loads).dead_letter(dead);
        Supervisor::new("worker")
            .consumer(consumer.concurrency(PREFETCH).max_in_flight(PREFETCH))
            .run_until_signal(steadfast::connect(&url).await.expect("connects"))
            .await
    });
    std::process::exit(i32::from(ended.is_err()));
}

/// Starts it again whenever it has died, until everything is done or set aside. What was done, and how often it died.
fn run_until_all_is_settled(url: &str, queue: &str) -> (BTreeSet<usize>, usize) {
    let (mut done, mut deaths, mut dead) = (BTreeSet::new(), 0, false);
    loop {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "crash::work", "--ignored", "--nocapture"]);
        let running = Running::start(command.env("TEST_URL", url).env("TEST_QUEUE", queue));
        while let Some(line) = running.line() {
            done.extend(line.strip_prefix("done ").and_then(|id| id.parse::<usize>().ok()));
            dead |= line.contains("message.dead");
            if dead && done.len() == MESSAGES - 1 {
                terminate(running.pid());
                while running.line().is_some() {}
                assert_eq!(running.wait().code(), Some(0));
                return (done, deaths);
            }
        }
        deaths += 1;
        assert!(deaths <= LIMIT + 1, "it dies for the {deaths}th time, with {} done", done.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_aborts_the_process_is_set_aside_and_no_other() {
    let rig = Rig::new("crash").await;
    rig.broker.declare(&Source::queue(rig.queue.as_str())).await.expect("declares");
    let publisher = rig.broker.publisher().await.expect("publishes");
    let sent = join_all((0..MESSAGES).map(|id| {
        let body = serde_json::to_vec(&Load { id }).expect("encodes");
        let mut message = Outgoing::new(rig.queue.as_str(), body);
        message.message_type = Some("load".to_owned());
        publisher.send(message)
    }));
    assert!(sent.await.iter().all(Result::is_ok));
    let (url, queue) = (url().await, rig.queue.clone());
    let (done, deaths) =
        tokio::task::spawn_blocking(move || run_until_all_is_settled(url, &queue)).await.expect("ends");
    assert!(!done.contains(&KILLER) && done.iter().all(|id| *id < MESSAGES));
    assert!((1..=LIMIT + 1).contains(&deaths), "{deaths}");
    let dead = rig.outside.get(&rig.dead()).await.delivery;
    assert_eq!(dead.data, serde_json::to_vec(&Load { id: KILLER }).expect("encodes"));
    let headers = dead.properties.headers().as_ref().expect("a record").inner();
    assert_eq!(headers.get(known::REASON), Some(&AMQPValue::LongString("crashed".into())));
    assert!(rig.outside.try_get(&rig.dead()).await.is_none(), "it alone");
    assert!(rig.outside.try_get(&rig.queue).await.is_none(), "nothing is left");
}

#[tokio::test]
async fn a_narrow_window_holds_nothing_beyond_what_was_handed_out() {
    let rig = Rig::new("narrow").await;
    let counts = rig.broker.capabilities().release_counts;
    let mut consuming = rig.subscribe(10).await;
    consuming.0.set_narrow(true);
    rig.publish(0..20).await;
    let first = consuming.one().await;
    assert_eq!(body(&first), "0");
    assert_eq!(rig.outside.ready(&rig.queue).await, 19, "the others wait with the broker");
    consuming.0.set_narrow(false);
    let mut taken = consuming.take(2).await;
    // the broker sends as many as it may by itself
    crate::rig::eventually_equal("what waits", 9, async || rig.outside.ready(&rig.queue).await).await;
    taken.push(first);
    consuming.0.set_narrow(true);
    if counts {
        assert_eq!(rig.outside.ready(&rig.queue).await, 9, "giving back would be counted");
    } else {
        crate::rig::eventually_equal("what waits", 17, async || rig.outside.ready(&rig.queue).await).await;
    }
    taken.into_iter().for_each(steadfast_core::Delivery::ack);
    for nth in 3..20 {
        let delivery = consuming.one().await;
        assert_eq!(body(&delivery), nth.to_string(), "in order");
        assert_eq!(delivery.incoming().delivery_count, Some(0), "and none is counted");
        delivery.ack();
        consuming.0.settler().flush();
    }
    consuming.finish().await;
    assert!(rig.outside.try_get(&rig.queue).await.is_none());
}

#[tokio::test]
async fn a_stop_amid_a_change_of_window_gives_everything_back() {
    for narrow in [false, true] {
        let rig = Rig::new("stop").await;
        rig.broker.declare(&Queue::quorum(rig.queue.as_str()).into()).await.expect("declares");
        rig.publish(0..20).await;
        let mut consuming = rig.subscribe(10).await;
        let taken = consuming.take(2).await;
        consuming.0.set_narrow(true);
        if !narrow {
            consuming.0.set_narrow(false);
        }
        consuming.0.stop().await.expect("stops");
        taken.into_iter().for_each(steadfast_core::Delivery::ack);
        consuming.finish().await;
        crate::rig::eventually_equal("what waits", 18, async || rig.outside.ready(&rig.queue).await).await;
    }
}
