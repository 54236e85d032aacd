//! A broker that is away for long, and starts that fail for ever: what they may cost.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use steadfast::{Consumer, EventKind, RestartIntensity, Source, Supervisor};
use steadfast_tests::Running;
use tokio::time::Instant;

use crate::ledger::Worker;
use crate::server::{ANSWER, Server};
use crate::stage::{Stage, VICTIM};

/// In real time: an outage of this length is the subject. The other tests run beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_without_redis_spends_no_restart() {
    let server = Server::redis().await;
    let stage = Stage::open(&server, 0).await;
    let before = stage.log.len();
    server.on(Server::kill9).await;
    stage.log.until(before, VICTIM, |what| matches!(what, EventKind::Failed { .. })).await;
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let health = stage.tree.health();
        assert!(health.live && !health.ready && health.why.len() == 2, "{health}");
        assert!(health.to_string().contains("tree/victim: broker unreachable for"), "{health}");
    }
    let tries = stage.log.since(before).into_iter().filter(|seen| seen.is_of(VICTIM));
    let tries = tries.filter(|seen| seen.event.what == EventKind::Started).count();
    // 0.1 + 0.2 + 0.4 + … s, then every 2 s
    assert!((25..=40).contains(&tries), "{tries} tries in a minute");

    server.on(Server::restart).await;
    let returned = Instant::now();
    let worked = stage.victim.ledger.worked_after(returned).await;
    // the delay that it is in, and what a try that has begun may take
    let bound = Duration::from_secs(2) + ANSWER + Duration::from_secs(1);
    assert!(worked - returned <= bound, "{:?}", worked - returned);
    stage.tree.until_ready().await.expect("ready");
    stage.close().await;
}

/// Consumers whose handlers cannot be made, in a process of their own, so that what it uses is theirs alone.
#[test]
#[ignore = "run by the test below in a process of its own"]
fn fail_for_ever() {
    const FAILURES: u32 = 10_000;
    const CONSUMERS: usize = 1_080;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
    runtime.block_on(async {
        let failures = Arc::new(AtomicU32::new(0));
        let intensity = RestartIntensity::new(u32::MAX, Duration::from_secs(3600));
        let mut supervisor = Supervisor::new("tree").intensity(intensity);
        for nth in 0..CONSUMERS {
            let (failures, queue) = (Arc::clone(&failures), Source::queue(format!("queue-{nth}")));
            supervisor =
                supervisor.consumer(Consumer::new(format!("c-{nth}"), queue).try_handler(move || {
                    failures.fetch_add(1, Ordering::Relaxed);
                    std::future::ready(Err::<Worker, _>("the database is away"))
                }));
        }
        let tree = supervisor.start(steadfast::connect("embedded:").await.expect("there")).await;
        let tree = tree.expect("starts");
        let (ticks, began, failed) = (processor_ticks(), Instant::now(), failures.load(Ordering::Relaxed));
        // their backoff decides how long that takes: nearly a minute
        while failures.load(Ordering::Relaxed) - failed < FAILURES {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let used = processor_ticks() - ticks;
        let failed = failures.load(Ordering::Relaxed) - failed;
        println!("\nused {used} of {} ticks for {failed} failures", began.elapsed().as_millis() / 10);
        assert!(!tree.health().ready);
    });
}

/// User and system time of this process, in hundredths of a second.
fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    // the name, in parentheses, may hold anything
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}

#[test]
fn starts_that_fail_for_ever_use_less_than_a_twentieth_of_a_core() {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "outage::fail_for_ever", "--ignored", "--nocapture"]);
    let running = Running::start(&mut command);
    let line = std::iter::from_fn(|| running.line()).find(|line| line.starts_with("used "));
    let line = line.expect("it says what it used");
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [used, of, failures] = numbers[..] else { panic!("{line}") };
    println!("{line}");
    assert!(failures >= 10_000, "{line}");
    assert!(used * 20 <= of, "{line}");
    assert!(running.wait().success());
}
