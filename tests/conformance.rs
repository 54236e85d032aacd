//! Every broker of this workspace keeps every promise of the contract: one suite, five kinds of queue.

use std::sync::Arc;
use std::time::Duration;

use steadfast_amqp::Queue;
use steadfast_conformance::{Need, Suite, conformance_tests};
use steadfast_core::Broker;
use steadfast_embedded::Embedded;
use steadfast_streams::Stream;
use steadfast_testbed::shared::{rabbit_url, redis_cluster_url, redis_url};

fn embedded() -> Suite {
    let server = Embedded::new();
    Suite::new(move || {
        let broker: Arc<dyn Broker> = server.reconnect();
        async move { Ok(broker) }
    })
}

fn rabbitmq() -> Suite {
    let url = rabbit_url();
    let connect = move || async move { Ok(steadfast_amqp::connect(url).await? as Arc<dyn Broker>) };
    // both cores may be busy with the tests beside this one, and with their brokers
    Suite::new(connect).slack(Duration::from_secs(5))
}

fn rabbitmq_classic() -> Suite {
    let classic = |name: &str| Queue::classic(name).into();
    rabbitmq().source(classic).dead_source(classic).without(Need::DeliveryCount)
}

fn redis() -> Suite {
    streams(redis_url())
}

/// Three nodes: a stream and its dead letters are on different ones, as a rule.
fn redis_cluster() -> Suite {
    streams(redis_cluster_url())
}

fn streams(url: &'static str) -> Suite {
    let connect = move || async move { Ok(steadfast_streams::connect(url).await? as Arc<dyn Broker>) };
    // what a consumer left behind is taken over after the least idle time, a minute by default
    let source = |name: &str| Stream::new(name).group("steadfast").min_idle(Duration::from_secs(1)).into();
    Suite::new(connect).source(source).slack(Duration::from_secs(5))
}

conformance_tests!(on_embedded, embedded());
conformance_tests!(on_rabbitmq, rabbitmq());
conformance_tests!(on_rabbitmq_classic, rabbitmq_classic());
conformance_tests!(on_redis, redis());
conformance_tests!(on_redis_cluster, redis_cluster());
