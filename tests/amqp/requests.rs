//! Request and reply: every request ends, as what it is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::protocol::basic::AMQPProperties;
use serde::{Deserialize, Serialize};
use steadfast::amqp::{Amqp, RequestError, RequestErrorKind, Requester};
use steadfast::prelude::*;
use steadfast_testbed::{shared, unique};
use tokio::sync::Semaphore;

use crate::rig::{Outside, PATIENCE, amqp, eventually_equal};

#[derive(Debug, Serialize, Deserialize, Message)]
#[message(name = "price")]
struct Price {
    item: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(name = "quote")]
struct Quote {
    cents: u64,
}

#[handler]
async fn on_price(asked: Price, cx: &Context) -> Result<Quote, Failure> {
    match asked.item {
        0 => Err(Failure::reject("no such item")),
        1 if cx.attempt() == 1 => Err(Failure::retry("not yet")),
        2 => Err(Failure::retry("never")),
        item => Ok(Quote { cents: 100 * item }),
    }
}

/// Answers when it gets a permit.
#[derive(Handler)]
#[handler(Price)]
struct Slow(Arc<Semaphore>);

impl Handle<Price> for Slow {
    async fn handle(&self, asked: Price, cx: &Context) -> Result<(), Failure> {
        if asked.item == 0 {
            self.0.acquire().await?.forget();
        }
        Ok(cx.reply(&Quote { cents: asked.item }).await?)
    }
}

struct Asking {
    requester: Requester,
    queue: String,
    tree: Tree,
}

impl Asking {
    async fn start<H: Handler>(handler: impl Fn() -> H + Send + Sync + 'static) -> Self {
        let (broker, queue) = (amqp().await, unique("rpc"));
        let retry = Retry::fixed(Duration::from_millis(50)).max_attempts(2);
        let consumer = Consumer::new("c", queue.as_str()).handler(handler).retry(retry).concurrency(16);
        let tree = Supervisor::new("s").consumer(consumer).start(Arc::<Amqp>::clone(&broker)).await;
        let tree = tree.expect("starts");
        tree.until_ready().await.expect("runs");
        let requester = broker.requester().await.expect("connects");
        Self { requester, queue, tree }
    }

    async fn ask(&self, item: u64, deadline: Duration) -> Result<Quote, RequestError> {
        self.requester.request(Envelope::new(&Price { item }).to(self.queue.as_str()), deadline).await
    }
}

fn chain(error: &RequestError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[tokio::test]
async fn what_a_handler_returns_comes_back_to_who_asked() {
    let asking = Asking::start(|| on_price).await;
    let asked = (1..300).map(|item| asking.ask(item, PATIENCE));
    for (item, answer) in (1..).zip(join_all(asked).await) {
        match item {
            2 => assert_eq!(answer.expect_err("given up").kind(), RequestErrorKind::Remote),
            item => assert_eq!(answer.expect("answered"), Quote { cents: 100 * item }),
        }
    }
    assert_eq!(asking.requester.late_replies(), 0);
    asking.tree.drain().await.expect("drains");
}

#[tokio::test]
async fn who_asks_for_what_is_dead_lettered_is_told_why() {
    let asking = Asking::start(|| on_price).await;
    for (item, reason, text) in [(0, "rejected", "no such item"), (2, "exhausted", "never")] {
        let error = asking.ask(item, PATIENCE).await.expect_err("given up");
        assert_eq!(error.kind(), RequestErrorKind::Remote, "{error:?}");
        assert_eq!(error.remote_reason(), Some(reason));
        assert!(chain(&error).contains(text), "{error:?}");
    }
    let outside = Outside::connect(shared::rabbit_url()).await;
    let dead = format!("{}.dead", asking.queue);
    eventually_equal("dead letters", 2, async || outside.ready(&dead).await).await;
    asking.tree.drain().await.expect("drains");
}

#[tokio::test]
async fn nobody_to_answer_is_known_at_once() {
    let requester = amqp().await.requester().await.expect("connects");
    let nowhere = unique("rpc.nowhere");
    let price = Price { item: 7 };
    let asked = requester.request::<_, Quote>(Envelope::new(&price).to(nowhere.as_str()), PATIENCE);
    let error = asked.await.expect_err("nobody is there");
    assert_eq!(error.kind(), RequestErrorKind::NoResponder, "{error:?}");
    assert!(error.to_string().contains(&nowhere), "{error}");
}

#[tokio::test]
async fn a_reply_after_the_deadline_is_counted_and_disturbs_nobody() {
    let gate = Arc::new(Semaphore::new(0));
    let asking = Asking::start({
        let gate = Arc::clone(&gate);
        move || Slow(Arc::clone(&gate))
    })
    .await;
    let error = asking.ask(0, Duration::from_secs(3)).await.expect_err("too slow");
    assert_eq!(error.kind(), RequestErrorKind::Deadline, "{error:?}");
    assert_eq!(asking.requester.late_replies(), 0);
    gate.add_permits(1);
    eventually_equal("late replies", 1, async || asking.requester.late_replies()).await;
    assert_eq!(asking.ask(5, PATIENCE).await.expect("answered"), Quote { cents: 5 });
    asking.tree.drain().await.expect("drains");
}

#[tokio::test]
async fn a_lost_channel_ends_what_was_asked_on_it_and_the_next_request_opens_another() {
    let gate = Arc::new(Semaphore::new(0));
    let asking = Asking::start({
        let gate = Arc::clone(&gate);
        move || Slow(Arc::clone(&gate))
    })
    .await;
    let outside = Outside::connect(shared::rabbit_url()).await;
    // taken by the handler, so it is confirmed, and then its channel is closed by the next one
    let breaking = async {
        eventually_equal("the request with its handler", 1, async || {
            asking.tree.consumers().iter().map(|consumer| consumer.in_flight).sum::<usize>()
        })
        .await;
        let nowhere = Destination::exchange(unique("rpc.exchange"), "price");
        let price = Price { item: 7 };
        asking.requester.request::<_, Quote>(Envelope::new(&price).to(nowhere), PATIENCE).await
    };
    let (lost, broken) = tokio::join!(asking.ask(0, PATIENCE * 4), breaking);
    assert_eq!(broken.expect_err("no such exchange").kind(), RequestErrorKind::NoResponder);
    let lost = lost.expect_err("its channel is gone");
    assert_eq!(lost.kind(), RequestErrorKind::Unknown, "{lost:?}");
    gate.add_permits(1);
    assert_eq!(asking.ask(5, PATIENCE).await.expect("answered"), Quote { cents: 5 });
    let dead = format!("{}.dead", asking.queue);
    assert_eq!(outside.ready(&dead).await, 0, "an unwanted reply is no failure");
    asking.tree.drain().await.expect("drains");
}

#[tokio::test]
async fn a_service_that_knows_nothing_of_us_answers_as_well() {
    let (broker, queue) = (amqp().await, unique("rpc.foreign"));
    broker.declare(&Source::queue(queue.as_str())).await.expect("declares");
    let requester = broker.requester().await.expect("connects");
    let outside = Outside::connect(shared::rabbit_url()).await;
    for (body, expected) in
        [(r#"{"cents":7}"#, Ok(Quote { cents: 7 })), ("7", Err(RequestErrorKind::Undecodable))]
    {
        let price = Price { item: 7 };
        let asked = requester.request::<_, Quote>(Envelope::new(&price).to(queue.as_str()), PATIENCE);
        let answering = async {
            let request = outside.get(&queue).await;
            let properties = &request.delivery.properties;
            let reply_to = properties.reply_to().clone().expect("says where to");
            let id = properties.correlation_id().clone().expect("says what it is");
            let options = lapin::options::BasicPublishOptions::default();
            let reply = AMQPProperties::default().with_correlation_id(id);
            let sent = outside.channel.basic_publish("".into(), reply_to, options, body.as_bytes(), reply);
            sent.await.expect("written").await.expect("confirmed");
        };
        let (answer, ()) = tokio::join!(asked, answering);
        assert_eq!(answer.map_err(|error| error.kind()), expected);
    }
}

#[tokio::test]
async fn a_request_expires_in_its_queue_with_its_deadline() {
    let (broker, queue) = (amqp().await, unique("rpc.expire"));
    broker.declare(&Source::queue(queue.as_str())).await.expect("declares");
    let requester = broker.requester().await.expect("connects");
    let price = Price { item: 7 };
    let asked = (0..3).map(|_| {
        let envelope = Envelope::new(&price).to(queue.as_str()).correlation_id("mine");
        requester.request::<_, Quote>(envelope, Duration::from_millis(500))
    });
    for answer in join_all(asked).await {
        assert_eq!(answer.expect_err("nobody answers").kind(), RequestErrorKind::Deadline);
    }
    let outside = Outside::connect(shared::rabbit_url()).await;
    eventually_equal("requests that nobody waits for", 0, async || outside.ready(&queue).await).await;
}
