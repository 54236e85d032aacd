//! The worker is killed, and the broker restarted, at every step of a retry, of a dead letter and of a redrive: each message
//! is done or dead in the end, and after a redrive in the queue.
#![expect(clippy::expect_used, reason = "a test says what it expected")]
#![expect(clippy::print_stdout, reason = "a test prints what it measured")]

#[path = "steps/embedded.rs"]
mod embedded;
#[path = "steps/plant.rs"]
mod plant;
#[path = "steps/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::time::Instant;

use steadfast_testbed::Step;

use crate::plant::Plant;
use crate::server::Server;

/// What is taken away while a step is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Restart,
}

const FAULTS: [Fault; 2] = [Fault::Kill, Fault::Restart];

/// Of so many messages, one in a hundred fails for ever.
async fn each_ends_in_one_place(server: Server, messages: usize) {
    let begun = Instant::now();
    let mut plant = Plant::build(server).await;
    let (retry, dead) = plant.server.copies(&plant.queue);
    let mut steps = 0;
    // a half for each: what was doubled on its way to a retry would hide that it was lost on its way to the dead letters
    for (needles, half) in [(&retry, 0..messages / 2), (&dead, messages / 2..messages)] {
        let until = half.end;
        plant.publish(half).await;
        for fault in FAULTS {
            for step in plant.server.steps() {
                plant.proxy.stop_at(*step, needles);
                plant.work();
                plant.strike(fault).await;
                steps += 1;
            }
        }
        plant.work();
        plant.until_quiet(until).await;
    }
    let (done, dead) = (plant.done(), plant.ids(&plant.dead()).await);
    let poison: BTreeSet<String> =
        (0..messages).filter(|id| plant::is_poison(*id)).map(plant::name).collect();
    let buried: BTreeSet<String> = dead.iter().cloned().collect();
    let sound: BTreeSet<String> = (0..messages).map(plant::name).filter(|id| !poison.contains(id)).collect();
    assert!(done == sound, "{} are done, {} were to be", done.len(), sound.len());
    assert!(buried == poison, "dead are {buried:?}");
    // a death between the copy and the end of the original makes one more, and nothing else does
    assert!(dead.len() - poison.len() <= steps, "{} are doubled", dead.len() - poison.len());
    plant.stop();
    steps += redriven(&mut plant, &poison).await;
    let version = plant.server.version();
    println!(
        "{version}: {messages} messages, {steps} steps, {} doubled in the dead letters, {:?}",
        dead.len() - poison.len(),
        begun.elapsed()
    );
}

/// The dead letters go back to the queue, which nobody works at any more.
async fn redriven(plant: &mut Plant, poison: &BTreeSet<String>) -> usize {
    let (needles, mut steps) = (plant.server.redrive(&plant.queue), 0);
    // a stream keeps what was done
    let before = plant.ids(&plant.queue).await.len();
    assert!(before == 0 || !plant.server.steps().contains(&Step::Settle), "{before} are left in the queue");
    for fault in FAULTS {
        for step in plant.server.steps() {
            plant.proxy.stop_at(*step, &needles);
            plant.redrive().await;
            plant.strike(fault).await;
            steps += 1;
        }
    }
    let uncertain = plant.finish_redrive(false).await;
    let (queue, stay) = (plant.ids(&plant.queue).await, plant.ids(&plant.dead()).await);
    let sent: BTreeSet<String> = queue.iter().skip(before).cloned().collect();
    let kept: BTreeSet<String> = stay.iter().cloned().collect();
    assert_eq!(&(&sent | &kept), poison, "none is lost");
    // RabbitMQ cannot move a letter in one step: one that may have been sent is named, and is kept
    let both: BTreeSet<String> = &sent & &kept;
    assert!(both.is_subset(&uncertain), "{both:?} are in both places, in doubt are {uncertain:?}");
    assert!(plant.server.steps().contains(&Step::Settle) || both.is_empty(), "moved in one step: {both:?}");
    println!("redriven: {} in the queue, {} in doubt and kept", queue.len() - before, stay.len());
    if !uncertain.is_empty() {
        // the operator's word settles it: once more is better than not at all
        let uncertain = plant.finish_redrive(true).await;
        assert!(uncertain.is_empty(), "{uncertain:?}");
    }
    let (queue, stay) = (plant.ids(&plant.queue).await, plant.ids(&plant.dead()).await);
    let sent: BTreeSet<String> = queue.into_iter().skip(before).collect();
    assert!(stay.is_empty() && sent == *poison, "each is in the queue and nowhere else: {stay:?}");
    steps
}

const FEW: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_ends_in_one_place_on_rabbitmq() {
    each_ends_in_one_place(Server::rabbit().await, FEW).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_ends_in_one_place_on_redis() {
    each_ends_in_one_place(Server::redis().await, FEW).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_ten_thousand_ends_in_one_place_on_the_embedded_broker() {
    embedded::each_ends_in_one_place(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn ten_thousand_on_rabbitmq() {
    each_ends_in_one_place(Server::rabbit().await, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn ten_thousand_on_redis() {
    each_ends_in_one_place(Server::redis().await, 10_000).await;
}
