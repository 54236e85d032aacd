//! Exchanges, queues and bindings as values: where messages go, what differs, and that nothing is changed by looking.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use steadfast_amqp::{Amqp, Exchange, Match, Options, Overflow, Queue, State, Topology};
use steadfast_core::{
    Broker, Destination, HeaderValue, Outgoing, PublishErrorKind, Source, SubscribeErrorKind,
};
use steadfast_testbed::unique;

use crate::rig::{Rig, subscribe, url};

/// What is published, and the queues that are to get it; none is an error of the publish.
struct Sent {
    key: &'static str,
    headers: Vec<(&'static str, HeaderValue)>,
    to: &'static [&'static str],
}

fn sent(key: &'static str, to: &'static [&'static str]) -> Sent {
    Sent { key, headers: Vec::new(), to }
}

fn with(headers: &[(&'static str, &'static str)], number: i64, to: &'static [&'static str]) -> Sent {
    let mut headers: Vec<_> =
        headers.iter().map(|(name, value)| (*name, HeaderValue::from(*value))).collect();
    headers.push(("number", number.into()));
    Sent { key: "", headers, to }
}

/// Names that nobody else has, so that rows can share a broker.
struct Names(String);

impl Names {
    fn of(&self, name: &str) -> String {
        format!("{}.{name}", self.0)
    }

    fn queue(&self, name: &str) -> Queue {
        Queue::classic(self.of(name))
    }
}

/// One row of the table: publishes to the exchange `x`, and looks at what is in all of these queues.
async fn row(rig: &Rig, kind: &str, names: &Names, queues: &[&str], topology: Topology, table: Vec<Sent>) {
    topology.apply(&rig.broker).await.expect(kind);
    topology.verify(&rig.broker).await.expect("what was applied is there");
    let publisher = rig.broker.publisher().await.expect("publishes");
    let mut expected = BTreeSet::new();
    for (nth, Sent { key, headers, to }) in table.into_iter().enumerate() {
        let mut message = Outgoing::new(Destination::exchange(names.of("x"), key), nth.to_string());
        for (name, value) in headers {
            message.headers.set(name, value);
        }
        let outcome = publisher.send(message).await.map_err(|error| error.kind());
        let routed = if to.is_empty() { Err(PublishErrorKind::Unroutable) } else { Ok(()) };
        assert_eq!(outcome, routed, "{kind}: message {nth} by `{key}`");
        expected.extend(to.iter().map(|queue| ((*queue).to_owned(), nth)));
    }
    let mut found = BTreeSet::new();
    for queue in queues {
        while let Some(message) = rig.outside.try_get(&names.of(queue)).await {
            let nth = String::from_utf8_lossy(&message.delivery.data).parse().expect("a number");
            assert!(found.insert(((*queue).to_owned(), nth)), "{kind}: {nth} came to `{queue}` twice");
        }
    }
    assert_eq!(found, expected, "{kind}");
}

#[tokio::test]
async fn each_type_of_exchange_routes_as_it_says() {
    let rig = Rig::new("routing").await;
    let names = |kind: &str| Names(unique(kind));

    let n = names("direct");
    let x = Exchange::direct(n.of("x"));
    let topology = Topology::new()
        .queue(n.queue("a").bind(x.clone(), "red").bind(x.clone(), "green"))
        .queue(n.queue("b").bind(x, "red"));
    let table = vec![sent("red", &["a", "b"]), sent("green", &["a"]), sent("red.green", &[]), sent("*", &[])];
    row(&rig, "direct", &n, &["a", "b"], topology, table).await;

    let n = names("topic");
    let x = Exchange::topic(n.of("x"));
    let topology = Topology::new()
        .queue(n.queue("one").bind(x.clone(), "order.*.eu"))
        .queue(n.queue("many").bind(x.clone(), "order.#"))
        .queue(n.queue("all").bind(x, "#.us"));
    let table = vec![
        sent("order.placed.eu", &["one", "many"]),
        sent("order.placed.now.eu", &["many"]),
        sent("order..eu", &["one", "many"]),
        sent("order", &["many"]),
        sent("orders", &[]),
        sent("us", &["all"]),
        sent("order.placed.us", &["many", "all"]),
    ];
    row(&rig, "topic", &n, &["one", "many", "all"], topology, table).await;

    let n = names("fanout");
    let x = Exchange::fanout(n.of("x"));
    let topology = Topology::new().queue(n.queue("a").bind(x.clone(), "")).queue(n.queue("b").bind(x, "k"));
    row(&rig, "fanout", &n, &["a", "b"], topology, vec![sent("", &["a", "b"]), sent("any", &["a", "b"])])
        .await;

    let n = names("headers");
    let x = Exchange::headers(n.of("x"));
    let both = || [("region", HeaderValue::from("eu")), ("number", HeaderValue::Int(7))];
    let topology = Topology::new()
        .queue(n.queue("all").bind_headers(x.clone(), Match::All, both()))
        .queue(n.queue("any").bind_headers(x, Match::Any, both()));
    let table = vec![
        with(&[("region", "eu")], 7, &["all", "any"]),
        with(&[("region", "eu")], 8, &["any"]),
        with(&[("region", "us")], 7, &["any"]),
        with(&[], 8, &[]),
        with(&[("region", "eu"), ("more", "x")], 7, &["all", "any"]),
        sent("", &[]),
    ];
    row(&rig, "headers", &n, &["all", "any"], topology, table).await;

    let n = names("alternate");
    let unrouted = Exchange::fanout(n.of("unrouted"));
    let x = Exchange::direct(n.of("x")).alternate(unrouted.clone());
    let topology =
        Topology::new().queue(n.queue("a").bind(x, "red")).queue(n.queue("rest").bind(unrouted, ""));
    let table = vec![sent("red", &["a"]), sent("green", &["rest"]), sent("", &["rest"])];
    row(&rig, "alternate", &n, &["a", "rest"], topology, table).await;

    let n = names("exchange-to-exchange");
    let x = Exchange::topic(n.of("x"));
    let inner = Exchange::fanout(n.of("inner")).internal().bind(x.clone(), "order.*");
    let last = Exchange::headers(n.of("last")).bind(inner.clone(), "");
    let topology = Topology::new()
        .queue(n.queue("direct").bind(x, "#"))
        .queue(n.queue("fed").bind(inner, ""))
        .queue(n.queue("last").bind_headers(last, Match::All, [("number", 1_i64)]));
    let mut one = sent("order.placed", &["direct", "fed", "last"]);
    one.headers.push(("number", 1_i64.into()));
    let table = vec![sent("order.placed", &["direct", "fed"]), sent("bill.paid", &["direct"]), one];
    row(&rig, "exchange-to-exchange", &n, &["direct", "fed", "last"], topology, table).await;
}

fn states(plan: &steadfast_amqp::Plan) -> Vec<&State> {
    plan.steps().iter().map(steadfast_amqp::Step::state).collect()
}

#[tokio::test]
async fn a_plan_changes_nothing_and_applying_it_does() {
    let rig = Rig::new("plan").await;
    let exchange = Exchange::direct(unique("plan-x"));
    let topology = Topology::new().queue(Queue::quorum(rig.queue.as_str()).bind(exchange, "k"));
    for _ in 0..2 {
        let plan = topology.plan(&rig.broker).await.expect("asks");
        assert_eq!(states(&plan), [&State::Missing; 3], "{plan}");
        assert!(!plan.is_satisfied());
        let error = topology.verify(&rig.broker).await.expect_err("missing");
        assert_eq!(error.kind(), SubscribeErrorKind::NotFound);
        assert!(error.to_string().contains(&rig.queue), "{error}");
    }
    assert_eq!(states(&topology.apply(&rig.broker).await.expect("applies")), [&State::Missing; 3]);
    let plan = topology.apply(&rig.broker).await.expect("twice is no error");
    assert_eq!(states(&plan), [&State::Present, &State::Present, &State::Unseen], "{plan}");
    assert!(plan.is_satisfied());
}

#[tokio::test]
async fn everything_that_differs_is_named_with_both_values_and_left_alone() {
    let rig = Rig::new("differs").await;
    let exchange = unique("differs-x");
    let theirs = Queue::classic(rig.queue.as_str()).max_length(5).message_ttl(Duration::from_secs(1));
    Topology::new()
        .queue(theirs.clone())
        .exchange(Exchange::topic(exchange.as_str()).auto_delete())
        .apply(&rig.broker)
        .await
        .expect("applies");
    let ours = Queue::quorum(rig.queue.as_str()).max_length(9).overflow(Overflow::RejectPublish);
    let other = unique("differs-new");
    let topology = Topology::new()
        .queue(Queue::classic(other.as_str()))
        .queue(ours)
        .exchange(Exchange::direct(exchange.as_str()));
    let plan = topology.plan(&rig.broker).await.expect("asks");
    let text = plan.to_string();
    for said in [
        "`x-queue-type` is `classic` on the broker and `quorum` here",
        "`x-max-length` is `5` on the broker and `9` here",
        "`x-overflow` is `none` on the broker and `reject-publish` here",
        "`x-message-ttl` is `1000` on the broker and `none` here",
        "`type` is `topic` on the broker and `direct` here",
        "`auto_delete` is `true` on the broker and `false` here",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let error = topology.apply(&rig.broker).await.expect_err("differs");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch);
    assert!(error.to_string().contains("x-message-ttl"), "{error}");
    let missing =
        Topology::new().queue(Queue::passive(other)).verify(&rig.broker).await.expect_err("missing");
    assert_eq!(missing.kind(), SubscribeErrorKind::NotFound, "nothing was declared on the way");
    let same = Topology::new().queue(theirs).exchange(Exchange::topic(exchange).auto_delete());
    same.verify(&rig.broker).await.expect("as it was");
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_it_is_sent() {
    let rig = Rig::new("refused").await;
    let bytes = [("h", HeaderValue::Bytes(vec![1]))];
    let queue = || Queue::classic(rig.queue.as_str());
    for (topology, said) in [
        (Topology::new().queue(Queue::quorum(rig.queue.as_str()).max_priority(3)), "Queue::classic"),
        (Topology::new().queue(queue().bind(Exchange::direct(""), "k")), "default exchange"),
        (Topology::new().queue(queue().bind(Exchange::direct("x".repeat(256)), "k")), "too long"),
        (
            Topology::new().queue(queue().bind_headers(Exchange::headers(unique("h")), Match::All, bytes)),
            "only numbers, texts and flags",
        ),
    ] {
        let error = topology.apply(&rig.broker).await.expect_err(said);
        assert_eq!(error.kind(), SubscribeErrorKind::Unsupported);
        assert!(error.to_string().contains(said), "{error}");
    }
}

async fn passive() -> std::sync::Arc<Amqp> {
    let options = Options::new(url().await).expect("a URL").passive();
    steadfast_amqp::connect_with(options).await.expect("connects")
}

#[tokio::test]
async fn in_passive_mode_nothing_is_declared() {
    let rig = Rig::new("operators").await;
    let broker = passive().await;
    let topology = Topology::new().queue(Queue::quorum(rig.queue.as_str()));
    let source = Source::queue(rig.queue.as_str());
    assert_eq!(topology.apply(&broker).await.expect_err("missing").kind(), SubscribeErrorKind::NotFound);
    for missing in ["its own queue", "that of its dead letters"] {
        let error = broker.subscribe(subscribe(source.clone(), &rig.dead(), 1)).await.err().expect(missing);
        assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
        rig.broker.declare(&source).await.expect("the operators declare it");
    }
    rig.broker.declare(&Queue::classic(rig.dead()).into()).await.expect("and the other one, as they like");
    topology.apply(&broker).await.expect("is there");
    broker.subscribe(subscribe(source, &rig.dead(), 1)).await.expect("takes them as they are");
}

#[tokio::test]
async fn a_plain_source_knows_what_it_found() {
    let rig = Rig::new("found").await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(100));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    rig.outside.declare(&rig.queue, arguments).await;
    let source = Source::queue(rig.queue.as_str());
    let mut consuming = rig.subscribe_to(source.clone(), 5).await;
    rig.publish([1]).await;
    let delivery = consuming.one().await;
    assert_eq!(delivery.incoming().delivery_count, Some(0), "quorum queues count");
    delivery.ack();
    consuming.finish().await;
    rig.publish([2]).await;
    assert_eq!(rig.broker.backlog(&source).await, None, "whoever waits there is not deaf");
}
