//! `topology`, `trim`, `tail`, `pending claim` and `bench`, the real command against real servers.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use futures_util::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use redis::cmd;
use serde_json::Value;
use steadfast::{Destination, Outgoing};

use crate::rig::Rig;

fn topology(rig: &Rig, length: u32) -> String {
    let queue = &rig.queue;
    format!(
        r#"
        [[exchange]]
        name = "{queue}.shop"
        type = "topic"

        [[queue]]
        name = "{queue}.orders"
        type = "classic"
        max_length = {length}
        bind = [{{ exchange = "{queue}.shop", key = "order.*" }}]
        "#
    )
}

#[tokio::test]
async fn rabbit_a_topology_is_planned_applied_and_verified() {
    let rig = Rig::rabbit().await;
    std::fs::write(rig.path("shop.toml"), topology(&rig, 100)).expect("writes");
    let plan = rig.run(&["topology", "plan", "shop.toml"]).await;
    assert_eq!(plan.code, Some(7), "{plan:?}");
    assert_eq!(plan.out.matches("missing").count(), 3, "{plan:?}");
    let asked = rig.run(&["topology", "apply", "shop.toml"]).await;
    assert_eq!(asked.code, Some(6), "nobody is here to ask: {asked:?}");
    let dry = rig.run(&["topology", "apply", "shop.toml", "--dry-run", "--json"]).await;
    assert_eq!((dry.code, &dry.json()["missing"]), (Some(0), &Value::from(3)), "{dry:?}");
    assert_eq!(
        rig.run(&["topology", "verify", "shop.toml"]).await.code,
        Some(7),
        "nothing was declared so far"
    );
    let applied = rig.run(&["topology", "apply", "shop.toml", "--yes", "--json"]).await;
    assert_eq!((applied.code, &applied.json()["declared"]), (Some(0), &Value::from(3)), "{applied:?}");
    let verified = rig.run(&["topology", "verify", "shop.toml"]).await;
    assert_eq!((verified.code, verified.out.as_str()), (Some(0), ""), "{verified:?}");

    std::fs::write(rig.path("other.toml"), topology(&rig, 200)).expect("writes");
    let differs = rig.run(&["topology", "verify", "other.toml", "--json"]).await;
    assert_eq!(differs.code, Some(7), "{differs:?}");
    let difference = &differs.json()["differences"][0];
    assert_eq!(
        (&difference["name"], &difference["file"], &difference["broker"]),
        (&Value::from("x-max-length"), &Value::from("200"), &Value::from("100"))
    );
    let refused = rig.run(&["topology", "apply", "other.toml", "--yes"]).await;
    assert_eq!(refused.code, Some(7), "{refused:?}");
    assert!(refused.err.contains("nothing was declared"), "{refused:?}");

    std::fs::write(rig.path("odd.json"), r#"{"queue":[{"name":"q","max_lenght":1}]}"#).expect("writes");
    let odd = rig.run(&["topology", "plan", "odd.json"]).await;
    assert!(odd.code == Some(1) && odd.err.contains("odd.json") && odd.err.contains("max_lenght"), "{odd:?}");
}

#[tokio::test]
async fn redis_a_trim_takes_nothing_that_a_group_needs() {
    let rig = Rig::redis().await;
    let mut raw = redis::Client::open(rig.url).expect("valid").get_connection().expect("connects");
    for n in 0..10 {
        cmd("XADD").arg(&rig.queue).arg("*").arg("n").arg(n).query::<String>(&mut raw).expect("added");
    }
    let read = |raw: &mut redis::Connection, count: u32| {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg("steadfast").arg("one").arg("COUNT").arg(count).arg("NOACK");
        read.arg("STREAMS").arg(&rig.queue).arg(">").query::<redis::Value>(raw).expect("read");
    };
    read(&mut raw, 4);
    let trim = ["trim", &rig.queue, "--last", "3"];
    let preview = rig.run(&[&trim[..], &["--preview", "--json"]].concat()).await;
    assert_eq!((preview.code, &preview.json()["count"]), (Some(0), &Value::from(4)), "{preview:?}");
    let told = rig.run(&[&trim[..], &["--preview"]].concat()).await;
    assert!(told.out.contains("would take 4 entries") && told.err.contains("group `steadfast`"), "{told:?}");
    assert_eq!(rig.run(&trim).await.code, Some(6), "nobody is here to ask");
    assert_eq!(rig.ready(&rig.queue).await, 10, "so far nothing is gone");
    let trimmed = rig.run(&[&trim[..], &["--yes", "--json"]].concat()).await;
    assert_eq!((trimmed.code, &trimmed.json()["count"]), (Some(0), &Value::from(4)), "{trimmed:?}");
    assert_eq!(rig.ready(&rig.queue).await, 6);
    assert_eq!(rig.run(&[&trim[..], &["--yes"]].concat()).await.code, Some(3), "the rest is held back");
    read(&mut raw, 10);
    let rest = rig.run(&[&trim[..], &["--yes"]].concat()).await;
    assert_eq!((rest.code, rig.ready(&rig.queue).await), (Some(0), 3), "{rest:?}");
    assert_eq!(rig.run(&["trim", &rig.queue]).await.code, Some(2), "it has to be told what to keep");
}

#[tokio::test]
async fn rabbit_has_no_streams_to_trim_and_redis_no_topology() {
    let (rabbit, redis) = (Rig::rabbit().await, Rig::redis().await);
    let trim = rabbit.run(&["trim", "orders", "--last", "3"]).await;
    assert!(trim.code == Some(1) && trim.err.contains("redis://"), "{trim:?}");
    std::fs::write(redis.path("empty.toml"), "").expect("writes");
    let plan = redis.run(&["topology", "plan", "empty.toml"]).await;
    assert!(plan.code == Some(1) && plan.err.contains("amqp://"), "{plan:?}");
}

/// A command that goes on until it saw enough.
struct Tailing {
    child: Child,
    err: BufReader<std::process::ChildStderr>,
}

impl Tailing {
    async fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let mut command = rig.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().expect("starts");
            let mut err = BufReader::new(child.stderr.take().expect("is piped"));
            let mut line = String::new();
            err.read_line(&mut line).expect("says something");
            assert!(line.starts_with("following"), "{line}");
            Self { child, err }
        });
        started.await.expect("starts")
    }

    /// What it printed, when it ended by itself.
    async fn end(mut self) -> String {
        let ended = tokio::task::spawn_blocking(move || {
            let (mut out, mut err) = (String::new(), String::new());
            self.child.stdout.take().expect("is piped").read_to_string(&mut out).expect("is text");
            self.err.read_to_string(&mut err).expect("is text");
            let status = self.child.wait().expect("ends");
            assert!(status.success(), "{status}: {err}");
            out
        });
        ended.await.expect("ends")
    }
}

async fn publish(rig: &Rig, messages: impl IntoIterator<Item = (Destination, &str)>) {
    let publisher = rig.broker.publisher().await.expect("publishes");
    let sending = messages.into_iter().map(|(to, body)| {
        let mut message = Outgoing::new(to, body.to_owned());
        message.message_type = Some("order.placed".to_owned());
        publisher.send(message)
    });
    for sent in join_all(sending).await {
        sent.expect("published");
    }
}

#[tokio::test]
async fn redis_a_tail_shows_what_is_added_and_disturbs_nobody() {
    let rig = Rig::redis().await;
    publish(&rig, [(Destination::queue(&*rig.queue), "before")]).await;
    let tail = Tailing::start(&rig, &["tail", &rig.queue, "--limit", "2", "--json"]).await;
    publish(&rig, ["one", "two"].map(|body| (Destination::queue(&*rig.queue), body))).await;
    let out = tail.end().await;
    let bodies: Vec<_> = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON")["body"]["text"].clone())
        .collect();
    assert_eq!(bodies, ["one", "two"]);
    let inspected = rig.run(&["inspect", &rig.queue, "--json"]).await.json();
    assert_eq!((&inspected["ready"], &inspected["unsettled"]), (&Value::from(3), &Value::from(0)));
    let missing = rig.run(&["tail", "no-such-stream"]).await;
    assert!(missing.code == Some(1) && missing.err.contains("no-such-stream"), "{missing:?}");
}

#[tokio::test]
async fn rabbit_a_tail_shows_what_is_published_to_an_exchange_and_disturbs_nobody() {
    let rig = Rig::rabbit().await;
    let connection = Connection::connect(rig.url, ConnectionProperties::default()).await.expect("connects");
    let channel = connection.create_channel().await.expect("opens");
    let name = format!("{}.shop", rig.queue);
    let (exchange, queue) = (ShortString::from(name.as_str()), ShortString::from(rig.queue.as_str()));
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default);
    channel.exchange_declare(exchange.clone(), ExchangeKind::Topic, options, none()).await.expect("declares");
    channel
        .queue_bind(queue, exchange, "order.#".into(), QueueBindOptions::default(), none())
        .await
        .expect("binds");
    let tail = Tailing::start(&rig, &["tail", "order.*", "--exchange", &name, "--limit", "2"]).await;
    let to = |key: &str| Destination::exchange(name.as_str(), key);
    publish(&rig, [(to("order.eu.late"), "not asked for"), (to("order.eu"), "one")]).await;
    publish(&rig, [(to("order.us"), "two")]).await;
    let out = tail.end().await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(
        lines[0].starts_with(&format!("{name}/order.eu ")) && lines[0].ends_with("order.placed  one"),
        "{out}"
    );
    assert!(lines[1].ends_with("order.placed  two"), "{out}");
    rig.until("all three are in the queue", async || rig.ready(&rig.queue).await == 3).await;
    let blind = rig.run(&["tail", &rig.queue]).await;
    assert!(blind.code == Some(1) && blind.err.contains("name the exchange that feeds it"), "{blind:?}");
    connection.close(200, "done".into()).await.expect("closes");
}

#[tokio::test]
async fn redis_what_is_pending_for_long_is_given_to_the_next_who_asks() {
    let rig = Rig::redis().await;
    publish(&rig, ["one", "two"].map(|body| (Destination::queue(&*rig.queue), body))).await;
    let mut raw = redis::Client::open(rig.url).expect("valid").get_connection().expect("connects");
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg("steadfast").arg("hangs").arg("STREAMS").arg(&rig.queue).arg(">");
    read.query::<redis::Value>(&mut raw).expect("read");
    let early = rig.run(&["pending", "claim", &rig.queue, "--idle", "1h", "--yes"]).await;
    assert_eq!(early.code, Some(3), "{early:?}");
    let claim = ["pending", "claim", &rig.queue, "--idle", "0ms"];
    let dry = rig.run(&[&claim[..], &["--dry-run", "--json"]].concat()).await;
    assert_eq!((dry.code, &dry.json()["fit"]), (Some(0), &Value::from(2)), "{dry:?}");
    assert_eq!(rig.run(&claim).await.code, Some(6), "nobody is here to ask");
    let freed = rig.run(&[&claim[..], &["--yes", "--json"]].concat()).await;
    assert_eq!((freed.code, &freed.json()["freed"]), (Some(0), &Value::from(2)), "{freed:?}");
    let held: Vec<(String, String, u64, u64)> = cmd("XPENDING")
        .arg(&rig.queue)
        .arg("steadfast")
        .arg("-")
        .arg("+")
        .arg(9)
        .query(&mut raw)
        .expect("asks");
    assert!(
        held.len() == 2 && held.iter().all(|entry| entry.1 == "steadfast-released" && entry.3 == 1),
        "{held:?}"
    );
}

async fn measures_and_leaves_nothing(rig: Rig) {
    let dry = rig.run(&["bench", "--dry-run", "--json"]).await;
    assert_eq!((dry.code, &dry.json()["messages"]), (Some(0), &Value::from(10_000)), "{dry:?}");
    let ran = rig.run(&["bench", "--messages", "300", "--size", "100", "--json"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let figures = ran.json();
    let is_rate = |name: &str| figures[name].as_f64().is_some_and(|rate| rate > 0.0);
    assert!(is_rate("publish_per_second") && is_rate("consume_per_second"), "{figures}");
    for place in ["", ".dead"] {
        let place = format!("{}{place}", figures["place"].as_str().expect("has a name"));
        let gone = rig.run(&["inspect", &place]).await;
        assert!(gone.code == Some(1) && gone.err.contains(&place), "{gone:?}");
    }
}

#[tokio::test]
async fn rabbit_a_bench_tells_how_fast_and_leaves_nothing() {
    measures_and_leaves_nothing(Rig::rabbit().await).await;
}

#[tokio::test]
async fn redis_a_bench_tells_how_fast_and_leaves_nothing() {
    measures_and_leaves_nothing(Rig::redis().await).await;
}
