//! TLS, by certificates of an authority of the test's own.

use steadfast_amqp::{Options, connect_with};
use steadfast_core::{Broker, ConnectError, ConnectErrorKind, Outgoing, Source};
use steadfast_testbed::{ClientCertificates, Rabbit, RabbitOptions, unique};
use tokio::task::spawn_blocking;

use crate::rig::{Consuming, body, subscribe};

async fn server(client: ClientCertificates) -> Rabbit {
    let start = move || Rabbit::start(&RabbitOptions::new().tls(client)).expect("starts");
    spawn_blocking(start).await.expect("starts")
}

fn url(server: &Rabbit) -> String {
    server.tls_url().expect("with TLS")
}

fn trusting(url: &str, server: &Rabbit) -> Options {
    let authority = server.certificates().expect("with TLS").authority().expect("read");
    Options::new(url).expect("valid").certificate_authority(authority)
}

async fn refused(options: Options) -> ConnectError {
    let error = connect_with(options).await.map(drop).expect_err("must not connect");
    assert_ne!(error.kind(), ConnectErrorKind::InvalidUrl, "{error}");
    error
}

/// Publishes, takes and settles, with all connections over TLS.
async fn whole_cycle(options: Options) {
    let (broker, queue) = (connect_with(options).await.expect("connects"), unique("tls"));
    broker.declare(&Source::queue(&*queue)).await.expect("declares");
    let publisher = broker.publisher().await.expect("publishes");
    publisher.send(Outgoing::new(&*queue, "by TLS")).await.expect("confirmed");
    let request = subscribe(Source::queue(&*queue), &format!("{queue}.dead"), 10);
    let mut consuming = Consuming(broker.subscribe(request).await.expect("subscribes"));
    let delivery = consuming.one().await;
    assert_eq!(body(&delivery), "by TLS");
    delivery.ack();
    consuming.finish().await;
    broker.close().await;
}

#[tokio::test]
async fn a_server_that_is_trusted_and_rightly_named_is_talked_to_and_no_other() {
    let server = server(ClientCertificates::Unasked).await;
    let stranger = refused(Options::new(&url(&server)).expect("valid")).await;
    assert!(format!("{stranger:?}").contains("certificate"), "{stranger:?}");
    // the certificate is for the address alone
    refused(trusting(&url(&server).replace("127.0.0.1", "localhost"), &server)).await;
    whole_cycle(trusting(&url(&server), &server)).await;
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_ours() {
    let server = server(ClientCertificates::Required).await;
    refused(trusting(&url(&server), &server)).await;
    let own = server.certificates().expect("with TLS");
    let options = trusting(&url(&server), &server)
        .client_certificate(own.client().expect("read"), own.client_key().expect("read"));
    assert!(!format!("{options:?}").contains("CERTIFICATE"), "{options:?}");
    whole_cycle(options).await;
}
