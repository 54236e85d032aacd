//! The other protocol, and a user with no more rights than it needs.

use std::time::Duration;

use bytes::Bytes;
use steadfast_core::{Broker, DeadLetter, Headers, Outgoing, PublishErrorKind, Reason};
use steadfast_streams::Retention;
use steadfast_testbed::{Redis, RedisOptions};

use crate::support::{Bed, Server, ack, body, client, on_cluster, one, parts, retry, skipped_on_cluster};

/// As docs/operations.md has it.
const RIGHTS: &str = "-@all +ping +info +time +type +client|id +client|unblock +evalsha +script|load +xadd +xack \
                      +xreadgroup +xautoclaim +xclaim +xpending +xrange +xlen +xtrim +xinfo|groups +xinfo|consumers \
                      +xgroup|create +xgroup|delconsumer +zadd +zrem +zrange +zrangebyscore +get +set +del +pttl";

/// And what it takes in a cluster.
const RIGHTS_IN_CLUSTER: &str = "+cluster|slots +asking";

/// Everything that a consumer and a publisher do.
pub(crate) async fn whole_cycle(bed: &mut Bed) {
    let (stream, dead) = (bed.stream.clone(), bed.dead());
    let publisher = bed.broker.publisher().await.expect("connects");
    let source = bed.group().consumer_name("till-1").retain(Retention::new().last(2));
    let mut subscription = bed.subscribe(source.clone(), 10).await;
    let settler = subscription.settler();
    for n in ["retried", "dead", "done", "held"] {
        publisher.send(Outgoing::new(&*stream, Bytes::from(n))).await.expect("published");
    }
    retry(&*settler, one(&mut *subscription).await, Duration::from_millis(50)).await;
    let (incoming, token) = parts(one(&mut *subscription).await);
    let letter = DeadLetter::from_headers(Reason::Rejected, Headers::new());
    settler.dead_letter(&incoming, token, &letter).await.expect("stored");
    assert_eq!(bed.raw::<i64>(&["XLEN", &dead]), 1);
    let done = one(&mut *subscription).await;
    ack(&*subscription, vec![done]).await;
    let held = one(&mut *subscription).await;
    let again = one(&mut *subscription).await;
    assert_eq!((body(&held), body(&again)), (&b"held"[..], &b"retried"[..]));
    assert_eq!(again.incoming().attempt(), Ok(2));
    ack(&*subscription, vec![again]).await;
    held.release();
    subscription.stop().await.expect("stops");
    subscription.close().await.expect("closes");
    let mut next = bed.subscribe(source, 10).await;
    let held = one(&mut *next).await;
    assert_eq!((body(&held), held.incoming().delivery_count), (&b"held"[..], Some(0)));
    ack(&*next, vec![held]).await;
    let later = Outgoing::new(&*stream, Bytes::from_static(b"later"));
    bed.broker.publish_after(later, Duration::from_millis(50)).await.expect("stored");
    let later = one(&mut *next).await;
    ack(&*next, vec![later]).await;
    bed.until("trimmed", |bed| bed.raw::<i64>(&["XLEN", &stream]) == 2).await;
    bed.broker.reap(&bed.group(), Duration::ZERO).await.expect("reaps");
    assert_eq!(bed.broker.backlog(&bed.group().into()).await, Some(0));
}

#[tokio::test]
async fn the_whole_cycle_over_resp3() {
    if skipped_on_cluster("which node has the clients is not known") {
        return;
    }
    let mut bed = Bed::shared_as("protocol=resp3").await;
    let clients: String = bed.raw(&["CLIENT", "LIST"]);
    assert!(clients.lines().any(|client| client.contains("resp=3")), "{clients}");
    whole_cycle(&mut bed).await;
}

#[tokio::test]
async fn the_whole_cycle_by_a_user_with_no_more_rights_than_it_needs() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let (stream, tagged) = (format!("~{}*", bed.stream), format!("~{{{}}}:*", bed.stream));
    let rule: Vec<&str> = ["ACL", "SETUSER", "app", "on", ">secret"]
        .into_iter()
        .chain([&*stream, &*tagged])
        .chain(RIGHTS.split_whitespace())
        .chain(RIGHTS_IN_CLUSTER.split_whitespace().filter(|_| on_cluster()))
        .collect();
    bed.raw::<()>(&rule);
    bed.broker = steadfast_streams::connect(&server.url_of("app:secret")).await.expect("connects");
    whole_cycle(&mut bed).await;
    let elsewhere = Outgoing::new("elsewhere", Bytes::new());
    let publisher = bed.broker.publisher().await.expect("connects");
    let error = publisher.send(elsewhere).await.expect_err("not its key");
    assert_eq!(error.kind(), PublishErrorKind::Invalid, "{error}");
    let log = |node: &Redis| -> Vec<redis::Value> {
        redis::cmd("ACL").arg("LOG").query(&mut *client(&node.url())).expect("answers")
    };
    let denied: Vec<redis::Value> = server.nodes().iter().flat_map(log).collect();
    // the client says its name where the server knows such a thing, and does not mind a no
    let denied: Vec<String> = denied.iter().map(|entry| format!("{entry:?}")).collect();
    let denied: Vec<&String> = denied.iter().filter(|entry| !entry.contains("client|setinfo")).collect();
    assert_eq!(denied.len(), 1, "rights are missing: {denied:?}");
}
