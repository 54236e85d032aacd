//! A redrive is killed, doubled and stopped, and each letter goes once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use steadfast::{Consumer, Context, Failure, Message, Source, Supervisor, handler_fn};

use crate::rig::Rig;

const LETTERS: usize = 800;

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

/// No letter was sent twice, and none is lost. What is left is in doubt: it may have been sent, and is kept all the same.
async fn each_once(rig: &Rig, letters: usize, left: usize) {
    let (sent, stay) = (sorted(rig.ids(&rig.queue).await), rig.ids(&rig.dead()).await);
    assert_eq!(stay.len(), left, "{stay:?}");
    let twice: Vec<_> = sent.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "sent twice: {twice:?}");
    let mut all = sorted(sent.into_iter().chain(stay).collect());
    all.dedup();
    let expected = sorted((0..letters).map(|number| format!("m-{number}")).collect());
    assert!(all == expected, "{} of {letters} are there", all.len());
}

/// Returns the rate that the second run came to, in messages per second.
async fn killed_and_resumed(rig: Rig, letters: usize, rate: u32) -> f64 {
    rig.letters(letters).await;
    let (dead, rate_text) = (rig.dead(), rate.to_string());
    let arguments =
        ["dead", "redrive", &dead, "--yes", "--json", "--job", "fix", "--ramp", "none", "--rate", &rate_text];
    let mut first = rig.command(&arguments).spawn().expect("starts");
    rig.until("some are sent", async || rig.ready(&rig.queue).await >= (letters as u64 / 4).min(5_000)).await;
    first.kill().expect("is killed");
    first.wait().expect("ends");
    let sent_before = rig.ready(&rig.queue).await;
    let given_back = async || rig.ready(&rig.queue).await + rig.ready(&rig.dead()).await >= letters as u64;
    rig.until("what it held is given back", given_back).await;
    assert!(sent_before < letters as u64, "it was over before it could be killed");
    let second = rig.run(&arguments).await;
    let report = second.json();
    let uncertain = report["uncertain"].as_array().expect("a list").len();
    assert_eq!(second.code, Some(if uncertain > 0 { 4 } else { 0 }), "{second:?}");
    assert!(uncertain <= 256, "no more than were under way: {second:?}");
    assert!(!rig.is_redis() || uncertain == 0, "moved in one step: {second:?}");
    each_once(&rig, letters, uncertain).await;
    let found = report["sent"].as_f64().expect("a number") / report["seconds"].as_f64().expect("a number");
    assert!(found <= f64::from(rate) * 1.05, "{found} per second: {second:?}");
    found
}

#[tokio::test]
async fn rabbit_a_killed_redrive_goes_on_and_sends_nothing_twice() {
    killed_and_resumed(Rig::rabbit().await, LETTERS, 400).await;
}

#[tokio::test]
async fn redis_a_killed_redrive_goes_on_and_sends_nothing_twice() {
    killed_and_resumed(Rig::redis().await, LETTERS, 400).await;
}

/// Returns the rate that it came to.
async fn a_hundred_thousand(rig: Rig, rate: u32) -> f64 {
    let found = killed_and_resumed(rig, 100_000, rate).await;
    assert!((found / f64::from(rate) - 1.0).abs() <= 0.05, "{found} of {rate}");
    found
}

/// With `--nocapture` it says what rate it came to.
#[tokio::test]
#[ignore = "takes minutes, and a machine of its own"]
async fn rabbit_a_hundred_thousand_letters() {
    let found = a_hundred_thousand(Rig::rabbit().await, 1_000).await;
    println!("{found:.1} messages per second of 1,000");
}

/// The same on Redis.
#[tokio::test]
#[ignore = "takes minutes, and a machine of its own"]
async fn redis_a_hundred_thousand_letters() {
    let found = a_hundred_thousand(Rig::redis().await, 1_000).await;
    println!("{found:.1} messages per second of 1,000");
}

/// Several trips, and what was looked at lies where it lay.
async fn looked_at_twice(rig: Rig) {
    rig.letters(LETTERS * 2).await;
    let first = rig.ids(&rig.dead()).await;
    // published side by side, they came in some order
    let all: BTreeSet<_> = first.iter().collect();
    assert_eq!((first.len(), all.len()), (LETTERS * 2, LETTERS * 2));
    assert!(rig.ids(&rig.dead()).await == first, "in the order in which they came");
    assert_eq!(rig.ready(&rig.dead()).await, LETTERS as u64 * 2);
}

#[tokio::test]
async fn rabbit_a_walk_leaves_the_order_as_it_was() {
    looked_at_twice(Rig::rabbit().await).await;
}

#[tokio::test]
async fn redis_a_walk_leaves_the_order_as_it_was() {
    looked_at_twice(Rig::redis().await).await;
}

async fn two_at_once(rig: Rig) {
    rig.letters(LETTERS).await;
    let dead = rig.dead();
    let job = |name| ["dead", "redrive", &dead, "--yes", "--json", "--job", name, "--ramp", "none"];
    let (one, two) = (job("one"), job("two"));
    let (mut first, mut second) = tokio::join!(rig.run(&one), rig.run(&two));
    // on RabbitMQ what the other gives back looks as if it had failed again: one that stopped for that goes on alone
    for (ran, job) in [(&mut first, &one), (&mut second, &two)] {
        if !rig.is_redis() && ran.code == Some(5) {
            *ran = rig.run(job).await;
        }
    }
    // one may have come too late to find anything
    assert!(matches!((first.code, second.code), (Some(0 | 3), Some(0 | 3))), "{first:?} {second:?}");
    each_once(&rig, LETTERS, 0).await;
}

#[tokio::test]
async fn rabbit_two_operators_at_once_send_each_letter_once() {
    two_at_once(Rig::rabbit().await).await;
}

#[tokio::test]
async fn redis_two_operators_at_once_send_each_letter_once() {
    two_at_once(Rig::redis().await).await;
}

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    id: u64,
}

impl Message for OrderPlaced {
    const NAME: &'static str = "order.placed";
}

/// The consumer that gave them up still does.
async fn stops(rig: Rig) {
    rig.letters(LETTERS).await;
    let consumer = Consumer::new("billing", Source::queue(rig.queue.as_str()))
        .handler(|| handler_fn(|_: OrderPlaced, _: Context| async { Err(Failure::reject("still closed")) }));
    // a tree that drains closes its broker
    let broker = steadfast::connect(rig.url).await.expect("connects");
    let tree = Supervisor::new("shop").consumer(consumer).start(broker).await.expect("starts");
    let dead = rig.dead();
    let ran = rig
        .run(&["dead", "redrive", &dead, "--yes", "--json", "--ramp", "2,2,2,2,2,2,2,2", "--settle", "2s"])
        .await;
    tree.drain().await.expect("drains");
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let report = ran.json();
    assert_eq!(report["end"], "stopped_itself");
    // 2 where nothing is slow; on a busy machine the first may come back later than the step waits
    assert!(report["sent"].as_u64().is_some_and(|sent| sent <= 16), "{ran:?}");
    assert_eq!(rig.ready(&dead).await, LETTERS as u64);
}

#[tokio::test]
async fn rabbit_a_redrive_of_what_still_fails_stops_itself() {
    stops(Rig::rabbit().await).await;
}

#[tokio::test]
async fn redis_a_redrive_of_what_still_fails_stops_itself() {
    stops(Rig::redis().await).await;
}
