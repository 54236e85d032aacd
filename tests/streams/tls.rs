//! TLS, by certificates of an authority of the test's own.

use steadfast_core::{ConnectError, ConnectErrorKind};
use steadfast_streams::{Options, connect_with};
use steadfast_testbed::{ClientCertificates, Redis, RedisOptions};

use crate::protocols::whole_cycle;
use crate::support::{Bed, skipped_on_cluster};

const WHY: &str = "one server's certificate is the subject";

fn server(client: ClientCertificates) -> Redis {
    Redis::start(&RedisOptions::new().tls(client)).expect("starts")
}

fn url(server: &Redis) -> String {
    server.tls_url().expect("with TLS")
}

fn trusting(url: &str, server: &Redis) -> Options {
    let authority = server.certificates().expect("with TLS").authority().expect("read");
    Options::new(url).certificate_authority(authority)
}

async fn refused(options: Options) -> ConnectError {
    let error = connect_with(options).await.map(drop).expect_err("must not connect");
    assert_ne!(error.kind(), ConnectErrorKind::InvalidUrl, "{error}");
    error
}

#[tokio::test]
async fn the_whole_cycle_over_tls() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let server = server(ClientCertificates::Unasked);
    let mut bed = Bed::at(&server.url()).await;
    bed.broker = connect_with(trusting(&url(&server), &server)).await.expect("connects");
    whole_cycle(&mut bed).await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted_or_not_the_one_named_is_not_talked_to() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let server = server(ClientCertificates::Unasked);
    refused(Options::new(url(&server))).await;
    // the certificate is for the address alone
    refused(trusting(&url(&server).replace("127.0.0.1", "localhost"), &server)).await;
    connect_with(trusting(&url(&server), &server)).await.expect("the same server, trusted and rightly named");
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_ours() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let server = server(ClientCertificates::Required);
    refused(trusting(&url(&server), &server)).await;
    let own = server.certificates().expect("with TLS");
    let options = trusting(&url(&server), &server)
        .client_certificate(own.client().expect("read"), own.client_key().expect("read"));
    assert!(!format!("{options:?}").contains("CERTIFICATE"), "{options:?}");
    let mut bed = Bed::at(&server.url()).await;
    bed.broker = connect_with(options).await.expect("connects");
    whole_cycle(&mut bed).await;
}
