//! Sentinels that are behind the times, and a master that is demoted without losing its clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use steadfast_core::{Broker, ConnectErrorKind, Outgoing, PublishErrorKind, SubscribeErrorKind};
use steadfast_streams::connect;
use steadfast_testbed::{Redis, RedisOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::sentinels::{WHY, end, subscribe};
use crate::support::{DEADLINE, ack, many, nothing_for, skipped_on_cluster};

/// Says what it is told to say, whatever is true.
struct Puppet {
    port: u16,
    names: Arc<AtomicU16>,
}

impl Puppet {
    async fn naming(server: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("bound").port();
        let names = Arc::new(AtomicU16::new(server.port()));
        let told = Arc::clone(&names);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&told)));
            }
        });
        Self { port, names }
    }

    fn name(&self, server: &Redis) {
        self.names.store(server.port(), Ordering::SeqCst);
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// One answer for each command: the place for `SENTINEL`, `+OK` for the client's greetings.
async fn answer(stream: TcpStream, names: Arc<AtomicU16>) {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let words: usize = line.trim().trim_start_matches('*').parse().expect("an array");
        let mut command = String::new();
        for _ in 0..words * 2 {
            lines.read_line(&mut command).await.expect("a word");
        }
        let port = names.load(Ordering::SeqCst).to_string();
        let answer = if command.contains("SENTINEL") {
            format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
        } else {
            "+OK\r\n".to_owned()
        };
        if lines.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}

fn demote(server: &Redis, to: &Redis) {
    server.cli(&["REPLICAOF", "127.0.0.1", &to.port().to_string()]).expect("demoted");
}

/// Waits until the reader waits at the server.
async fn blocked(server: &Redis) {
    let reading = || server.cli(&["INFO", "clients"]).expect("answers").contains("blocked_clients:1");
    let start = Instant::now();
    while !reading() {
        assert!(start.elapsed() < DEADLINE, "no blocked reader within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start() -> Redis {
    Redis::start(&RedisOptions::new()).expect("starts")
}

#[tokio::test]
async fn a_replica_is_not_taken_for_the_master_and_one_stale_sentinel_does_not_decide() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let (old, new) = (start(), start());
    demote(&old, &new);
    let (stale, right) = (Puppet::naming(&old).await, Puppet::naming(&new).await);
    let error = connect(&format!("redis+sentinel://{}/orders", stale.host())).await;
    assert_eq!(error.map(drop).expect_err("a replica").kind(), ConnectErrorKind::Unreachable);
    let both = format!("redis+sentinel://{},{}/orders", stale.host(), right.host());
    // whichever answers first
    for _ in 0..20 {
        connect(&both).await.expect("the master").close().await;
    }
}

#[tokio::test]
async fn a_connection_to_a_master_that_was_demoted_is_given_up() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let (old, new) = (start(), start());
    let sentinel = Puppet::naming(&old).await;
    let broker = connect(&format!("redis+sentinel://{}/orders", sentinel.host())).await.expect("connects");
    let publisher = broker.publisher().await.expect("connects");
    let message = || Outgoing::new("orders", Bytes::from_static(b"x"));
    publisher.send(message()).await.expect("published");
    let mut subscription = subscribe(&broker).await.expect("subscribes");
    let first = many(&mut *subscription, 1).await;
    ack(&*subscription, first).await;
    assert!(nothing_for(&mut *subscription, 100, Duration::from_millis(50)).await);
    blocked(&old).await;
    sentinel.name(&new);
    // no client is cut off, as sentinels would have it
    demote(&old, &new);
    let refused = publisher.send(message()).await.expect_err("read-only");
    assert_eq!(refused.kind(), PublishErrorKind::Rejected, "{refused}");
    publisher.send(message()).await.expect("published to the new master");
    let ended = end(&mut *subscription).await;
    assert_eq!(ended.kind(), SubscribeErrorKind::Unreachable, "{ended}");
    assert_eq!(new.cli(&["XLEN", "orders"]).expect("answers").trim(), "1");
    broker.close().await;
}
