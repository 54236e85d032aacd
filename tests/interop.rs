//! Real programs in Python on the other side, written as their field writes them: no header of ours on what comes in,
//! and what we set aside is read by them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use steadfast::prelude::*;
use steadfast_testbed::{shared, unique};
use steadfast_tests::Python;
use tokio::sync::mpsc;

type Tested = Result<(), Box<dyn std::error::Error>>;

const LIMIT: u32 = 3;

#[derive(Serialize, Deserialize, Message)]
#[message(name = "order")]
struct Order {
    id: u64,
    customer: String,
    cents: u64,
    fail: bool,
}

/// Tells the test of every attempt.
#[derive(Handler)]
#[handler(Order)]
struct Shop {
    attempts: mpsc::UnboundedSender<(Order, u32)>,
}

impl Handle<Order> for Shop {
    async fn handle(&self, order: Order, cx: &Context) -> Result<(), Failure> {
        let fail = order.fail;
        self.attempts.send((order, cx.attempt()))?;
        if fail { Err(Failure::retry("the ledger says no")) } else { Ok(()) }
    }
}

/// A tree with this one handler, and what the handler sees.
async fn shop(url: &str, queue: &str) -> Result<(Tree, Attempts), Box<dyn std::error::Error>> {
    let (attempts, seen) = mpsc::unbounded_channel();
    let consumer = Consumer::new("shop", Source::queue(queue))
        .handler(move || Shop { attempts: attempts.clone() })
        .concurrency(16)
        .retry(Retry::fixed(20.millis()).max_attempts(LIMIT));
    let tree = Supervisor::new("interop").consumer(consumer).start(steadfast::connect(url).await?).await?;
    Ok((tree, Attempts(seen)))
}

struct Attempts(mpsc::UnboundedReceiver<(Order, u32)>);

impl Attempts {
    /// Which attempts were made of each order, once `count` were made in all.
    async fn first(&mut self, count: usize) -> Result<BTreeMap<u64, Vec<u32>>, &'static str> {
        let mut attempts = BTreeMap::<_, Vec<_>>::new();
        for _ in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(30), self.0.recv()).await;
            let (order, attempt) = next.ok().flatten().ok_or("an attempt is missing")?;
            assert_eq!(order.customer, format!("Zoë {}", order.id % 7));
            assert_eq!(order.cents, 100 + order.id);
            attempts.entry(order.id).or_default().push(attempt);
        }
        assert!(self.0.try_recv().is_err(), "an attempt too many");
        Ok(attempts)
    }
}

async fn python(
    script: &'static str,
    arguments: [&str; 4],
) -> Result<Vec<Value>, Box<dyn std::error::Error>> {
    let python = Python::find().ok_or("found before")?;
    let arguments = arguments.map(str::to_owned);
    let ran = move || python.run(script, &arguments.each_ref().map(String::as_str));
    let lines = tokio::task::spawn_blocking(ran).await?;
    Ok(lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn aio_pika_sends_orders_and_reads_dead_letters() -> Tested {
    if Python::find().is_none() {
        return Ok(());
    }
    let (url, queue) = (shared::rabbit_url(), unique("interop"));
    let sent = python("aio_pika_peer.py", ["publish", url, &queue, "1000"]).await?;
    assert_eq!(sent.len(), 1_003);

    let (tree, mut attempts) = shop(url, &queue).await?;
    // 980 are fine, 20 fail always; of the three that another service has counted in, one is on its last attempt, one is
    // fine, and one never reaches the handler
    let attempts = attempts.first(980 + 20 * 3 + 2).await?;
    assert_eq!(attempts.len(), 1_002);
    assert_eq!(attempts[&50], [1, 2, 3]);
    assert_eq!(attempts[&51], [1]);
    assert_eq!((&attempts[&1_000], &attempts[&1_001]), (&vec![3], &vec![3]), "counting goes on at 2");

    let letters = python("aio_pika_peer.py", ["read", url, &format!("{queue}.dead"), "22"]).await?;
    let letters: BTreeMap<_, _> =
        letters.iter().map(|letter| (letter["body"].as_str(), &letter["headers"])).collect();
    assert_eq!(letters.len(), 22, "each once");
    for (number, sent) in sent.iter().enumerate().filter(|(number, _)| number % 50 == 0) {
        let headers = letters.get(&sent["body"].as_str()).ok_or("a body is not what was sent")?;
        assert_eq!(headers["x-retry-count"], LIMIT, "an integer, order {number}");
        assert_eq!(headers["x-error"], "the ledger says no", "order {number}");
    }
    let headers = letters.get(&sent[1_002]["body"].as_str()).ok_or("a count that is a text")?;
    assert_eq!(headers["steadfast-reason"], "bad-headers");
    assert!(headers["x-error"].as_str().is_some_and(|text| text.contains("x-retry-count")), "{headers}");
    tree.drain().await?;
    Ok(())
}

async fn redis_py(form: &'static str) -> Tested {
    if Python::find().is_none() {
        return Ok(());
    }
    let (url, stream) = (shared::redis_url(), unique("interop"));
    let sent = python("redis_peer.py", [form, url, &stream, "1000"]).await?;
    assert_eq!(sent.len(), 1_000);

    let (tree, mut attempts) = shop(url, &stream).await?;
    let attempts = attempts.first(980 + 20 * 3).await?;
    assert_eq!(attempts.len(), 1_000);
    assert_eq!((&attempts[&50], &attempts[&51]), (&vec![1, 2, 3], &vec![1]));

    let letters = python("redis_peer.py", ["read", url, &format!("{stream}.dead"), "20"]).await?;
    for sent in sent.iter().step_by(50) {
        let fields = sent.as_object().ok_or("an entry is its fields")?;
        let same = |letter: &&Value| fields.iter().all(|(name, value)| letter[name] == *value);
        let letter = letters.iter().find(same).ok_or("no dead letter has the fields that were sent")?;
        assert_eq!(
            (&letter["x-retry-count"], &letter["x-error"]),
            (&"3".into(), &"the ledger says no".into())
        );
    }
    tree.drain().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_sends_flat_fields_and_reads_dead_letters() -> Tested {
    redis_py("flat").await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_py_sends_a_single_body_and_reads_dead_letters() -> Tested {
    redis_py("body").await
}
