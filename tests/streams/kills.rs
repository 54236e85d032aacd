//! Consumers that are killed: what they held goes on, and nothing of them stays.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::{Reason, known};
use steadfast_testbed::RedisOptions;

use crate::child::{MIN_IDLE, Process, group, ledger, work};
use crate::support::{Bed, Server, ack, one, whole};

const CONSUMERS: usize = 20;

/// How long the whole of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn half_of_twenty_consumers_are_killed_again_and_again() {
    let all = whole(100_000, 15_000);
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let (url, stream) = (server.url(), bed.stream.clone());
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0", "MKSTREAM"]);
    let start = || Process::start("taker", &url, &stream);
    let mut takers: Vec<Process> = (0..CONSUMERS).map(|_| start()).collect();
    bed.until("twenty consumers", |bed| bed.consumers().len() == CONSUMERS).await;
    let fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'body', ARGV[2] + i) end";
    let counted = ledger(&stream);
    let (mut kills, mut added, began) = (0, 0, Instant::now());
    loop {
        let handled: usize = bed.raw(&["HLEN", &counted]);
        if handled == all {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{handled} of {all} after {kills} kills");
        // three rounds at least, each with work in hand
        if added < all && handled * 3 >= added * 2 {
            let more = (all / 10).min(all - added);
            bed.raw::<()>(&["EVAL", fill, "1", &stream, &more.to_string(), &added.to_string()]);
            added += more;
            bed.until("work in hand", |bed| bed.pending() > 0).await;
            for taker in takers.iter_mut().skip(kills % 2).step_by(2) {
                taker.kill9();
                *taker = start();
                kills += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{kills} kills, {all} entries in {:?}", began.elapsed());
    takers.iter_mut().for_each(Process::kill9);
    // whoever comes next takes over what was handled and not acknowledged, and clears the names away
    let mut last = bed.subscribe(group(&stream), 100).await;
    while bed.pending() > 0 {
        let delivery = one(&mut *last).await;
        ack(&*last, vec![delivery]).await;
    }
    // it has a name of its own only once it has read
    bed.until("no name of the dead", |bed| bed.consumers().iter().all(|name| name.starts_with("test@")))
        .await;
    last.close().await.expect("closes");
    assert!(bed.consumers().is_empty(), "{:?}", bed.consumers());
    let times: HashMap<u32, u32> = bed.raw(&["HGETALL", &counted]);
    let again: u32 = times.values().map(|times| times - 1).sum();
    // what each had in hand at most
    assert!(again <= u32::try_from((kills + CONSUMERS) * 50).expect("small"), "{again} handled twice");
}

#[tokio::test]
async fn what_a_killed_consumer_held_is_redelivered_soon_after_min_idle() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let stream = bed.stream.clone();
    let mut taker = Process::start("taker", &server.url(), &stream);
    bed.until("a consumer", |bed| {
        bed.try_raw::<Vec<Value>>(&["XINFO", "CONSUMERS", &stream, "billing"])
            .is_ok_and(|names| names.len() == 1)
    })
    .await;
    // it takes its time over a batch, in which it is killed
    while bed.raw::<i64>(&["HLEN", &ledger(&stream)]) == 0 || bed.pending() == 0 {
        for n in 0..100 {
            bed.add(&["body", &n.to_string()]);
        }
    }
    taker.kill9();
    let killed = Instant::now();
    let pending = bed.pending();
    let mut heir = bed.subscribe(group(&stream), 10_000).await;
    let mut left = pending;
    while left > 0 {
        let delivery = one(&mut *heir).await;
        left -= i64::from(delivery.incoming().redelivered);
        ack(&*heir, vec![delivery]).await;
    }
    let took = killed.elapsed();
    println!("{pending} entries redelivered within {took:?} of the kill");
    assert!(took < MIN_IDLE + Duration::from_secs(1) + Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn a_message_that_aborts_its_process_is_dead_lettered_and_no_other() {
    const ALL: u32 = 60;
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let (stream, dead) = (bed.stream.clone(), bed.dead());
    for id in 0..ALL {
        bed.add(&["body", &work(id, id == 17), known::TYPE, "work"]);
    }
    let counted = ledger(&stream);
    let (mut deaths, began) = (0, Instant::now());
    let mut victim = Process::start("victim", &server.url(), &stream);
    loop {
        let (handled, letters): (u32, u32) = (bed.raw(&["HLEN", &counted]), bed.raw(&["XLEN", &dead]));
        if handled == ALL - 1 && letters > 0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{handled} handled, {letters} dead, {deaths} deaths");
        if victim.ended() {
            deaths += 1;
            victim = Process::start("victim", &server.url(), &stream);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("{deaths} deaths in {:?}", began.elapsed());
    assert!((3..=4).contains(&deaths), "{deaths}");
    assert!(!victim.ended());
    bed.until("nothing pending", |bed| bed.pending() == 0).await;
    let letters: Vec<(String, HashMap<String, String>)> = bed.raw(&["XRANGE", &dead, "-", "+"]);
    let crashed = Reason::Crashed.to_string();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((&letters[0].1["body"], &letters[0].1[known::REASON]), (&work(17, true), &crashed));
    assert!(!bed.raw::<bool>(&["HEXISTS", &counted, "17"]));
}
