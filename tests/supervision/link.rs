//! The broker's other ends as children: what they say when it goes, and when it is there again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast::{
    Child, Destination, EventKind, Kind, Outgoing, PublishErrorKind, Publisher, RestartIntensity, Strategy,
    Supervisor,
};
use steadfast_testbed::unique;

use crate::ledger::PATIENCE;
use crate::log::Log;
use crate::server::Server;

const CONNECTION: &str = "broker";
const PUBLISHER: &str = "audit";

async fn they_tell_of_an_outage_and_come_back(server: Arc<Server>) {
    let queue = unique("audit");
    let (child, publisher) = Child::publisher(PUBLISHER);
    let broker = server.connect().await;
    broker.declare(&server.simple(&queue)).await.expect("declares");
    let tree = Supervisor::new("tree")
        .strategy(Strategy::RestForOne)
        .intensity(RestartIntensity::new(0, Duration::from_secs(3600)))
        .child(Child::connection(CONNECTION))
        .child(child)
        .start(broker)
        .await
        .expect("starts");
    let log = Log::of(&tree);
    tree.until_ready().await.expect("ready");
    let kinds: Vec<Kind> = tree.status().children.iter().map(|child| child.kind).collect();
    assert_eq!(kinds, [Kind::Connection, Kind::Publisher]);
    let send =
        async |body: &str| publisher.send(Outgoing::new(Destination::queue(&*queue), body.to_owned())).await;
    send("1").await.expect("published");

    let before = log.len();
    server.on(Server::stop).await;
    let lost = |what: &EventKind| matches!(what, EventKind::Failed { outage: true, .. });
    let seen = log.until(before, CONNECTION, lost).await;
    assert!(!seen.health.ready, "{:?}", seen.health);
    let error = send("2").await.expect_err("nobody is there");
    assert!(matches!(error.kind(), PublishErrorKind::Unreachable | PublishErrorKind::Unknown), "{error:?}");
    log.until(before, PUBLISHER, lost).await;
    let health = tree.health().to_string();
    for name in [CONNECTION, PUBLISHER] {
        assert!(health.contains(&format!("tree/{name}: ")), "{health}");
    }

    server.on(Server::restart).await;
    tree.until_ready().await.expect("ready again");
    // the port answers before the queue is there again
    let asked = Instant::now();
    while let Err(error) = send("3").await {
        assert!(asked.elapsed() < PATIENCE, "{error:?}; {}; {:#?}", tree.health(), log.since(before));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tree.until_ready().await.expect("ready");
    assert!(tree.health().ready, "an outage spends nothing, and the intensity is none: {}", tree.health());
    tree.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_and_publisher_on_rabbitmq() {
    they_tell_of_an_outage_and_come_back(Server::rabbit().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_and_publisher_on_redis() {
    they_tell_of_an_outage_and_come_back(Server::redis().await).await;
}
