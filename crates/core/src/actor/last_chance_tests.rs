//! What a handler's `on_dead` can do, and what it cannot, over a scripted broker, under paused time.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::*;
use crate::scripted::{Scripted, Told};
use crate::{
    Consumer, Context, DurationExt, Failure, Handle, Handler, Incoming, Message, Origin, Reason, Retry,
    Route, Source, known,
};

#[derive(Serialize, Deserialize)]
struct Do(String);

impl Message for Do {
    const NAME: &'static str = "do";
}

/// Fails as the message says, and writes down what it hears of dead ones.
struct Teller(Arc<Mutex<Vec<String>>>);

impl Handler for Teller {
    fn routes() -> Vec<Route<Self>> {
        vec![Route::to::<Do>()]
    }
}

impl Handle<Do> for Teller {
    async fn handle(&self, message: Do, _: &Context) -> Result<(), Failure> {
        match message.0.as_str() {
            "panic in both" => panic!("told to panic"),
            _ => Err(Failure::reject("told to reject")),
        }
    }

    async fn on_dead(&self, message: Do, failure: &Failure, cx: &Context) -> Result<(), Failure> {
        let heard = format!("{} on attempt {}: {failure}", message.0, cx.attempt());
        self.0.lock().expect("whole").push(heard);
        match message.0.as_str() {
            "error" => Err(Failure::snooze(1.hours())),
            "panic" | "panic in both" => panic!("told to panic again"),
            "hang" => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

struct Stage {
    broker: Scripted,
    heard: Arc<Mutex<Vec<String>>>,
    tree: Tree,
}

impl Stage {
    async fn open(set: impl FnOnce(Consumer) -> Consumer) -> Self {
        let (broker, heard) = (Scripted::new(), Arc::<Mutex<Vec<String>>>::default());
        let teller = Arc::clone(&heard);
        let consumer = Consumer::new("c", Source::queue("q"))
            .handler(move || Teller(Arc::clone(&teller)))
            .retry(Retry::none());
        let supervisor = Supervisor::new("s").consumer(set(consumer));
        let tree = supervisor.start(Arc::new(broker.clone())).await.expect("starts");
        Self { broker, heard, tree }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("whole").clone()
    }

    /// Waits until so many are dead; what their records say of the last chance.
    async fn dead(&self, count: usize) -> Vec<Option<String>> {
        let is_dead = |told: &&Told| matches!(told, Told::Dead(..));
        self.broker.until(|told| told.iter().filter(is_dead).count() == count).await;
        // the copy is noted before the record is
        tokio::time::sleep(1.millis()).await;
        let letters = self.broker.script().letters.clone();
        let failed =
            |name| letters.iter().map(|letter| letter.headers().get(name).map(ToString::to_string)).collect();
        failed(known::ON_DEAD_ERROR)
    }
}

#[tokio::test(start_paused = true)]
async fn it_hears_of_the_message_and_why_and_the_dead_letter_goes_its_way() {
    let stage = Stage::open(|consumer| consumer).await;
    stage.broker.body("\"one\"");
    assert_eq!(stage.dead(1).await, [None]);
    assert_eq!(stage.heard(), ["one on attempt 1: told to reject"]);
    stage.tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn what_fails_in_it_stands_in_the_record_and_loses_nothing() {
    let stage = Stage::open(|consumer| consumer).await;
    for order in ["error", "panic", "panic in both", "hang", "fine"] {
        stage.broker.body(&format!("{order:?}"));
    }
    let start = Instant::now();
    let failed = stage.dead(5).await;
    let said = ["snoozed", "told to panic again", "told to panic again", "handler took longer than 10s"];
    let said: Vec<_> = said.into_iter().map(|text| Some(text.to_owned())).chain([None]).collect();
    assert_eq!(failed, said);
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(stage.heard().len(), 5);
    let stats = stage.tree.child("c").expect("there").stats;
    assert_eq!(stats.dead, [(Reason::Panicked, 1), (Reason::Rejected, 4)]);
    assert_eq!(stats.panics, 2, "one for each message, and a fresh handler after each");
    stage.tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn it_has_as_long_as_an_attempt() {
    let stage = Stage::open(|consumer| consumer.timeout(3.secs())).await;
    let start = Instant::now();
    stage.broker.body("\"hang\"");
    assert_eq!(stage.dead(1).await, [Some("handler took longer than 3s".to_owned())]);
    assert_eq!(start.elapsed().as_secs(), 3);
    stage.tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn it_does_not_hear_of_what_the_handler_never_had() {
    let stage = Stage::open(|consumer| consumer).await;
    let mut crashed = Incoming::new("\"one\"", Origin::default());
    crashed.delivery_count = Some(5);
    stage.broker.deliver(crashed);
    stage.broker.body("{");
    let mut unknown = Incoming::new("\"one\"", Origin::default());
    unknown.message_type = Some("other".to_owned());
    stage.broker.deliver(unknown);
    stage.dead(3).await;
    assert_eq!(stage.heard(), [""; 0]);
    stage.tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_cuts_it_short_gives_the_message_back() {
    let stage = Stage::open(|consumer| consumer.timeout(1.hours())).await;
    stage.broker.body("\"hang\"");
    stage.broker.until(|told| told.contains(&Told::Subscribed)).await;
    while stage.heard().is_empty() {
        tokio::time::sleep(1.millis()).await;
    }
    stage.tree.drain().await.expect("drains");
    let told = stage.broker.told();
    assert!(
        told.contains(&Told::Released(1)) && !told.iter().any(|told| matches!(told, Told::Dead(..))),
        "{told:?}"
    );
}
