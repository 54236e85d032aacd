//! Health over HTTP, asked as a probe asks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadfast::{Consumer, Context, EventKind, Outgoing, Source, Supervisor, Tree, handler_fn};

use crate::ledger::{Job, PATIENCE};
use crate::log::Log;
use crate::server::{Server, blocking};

/// Any free port of the loopback address.
const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// What was answered.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Sends a request, and reads until the server closes the connection.
fn ask(address: SocketAddr, method: &str, path: &str, accept: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: probe\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
    let answer = blocking(move || ask(address, "GET", path, "*/*")).await;
    (answer.status, answer.body)
}

async fn get_json(address: SocketAddr, path: &'static str) -> (u16, Value) {
    let answer = blocking(move || ask(address, "GET", path, "application/json")).await;
    assert!(answer.head.to_lowercase().contains("content-type: application/json"), "{}", answer.head);
    (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
}

fn address(tree: &Tree) -> SocketAddr {
    tree.health_address().expect("it is served")
}

fn consumer(source: Source) -> Consumer {
    Consumer::new("billing", source).handler(|| handler_fn(|_: Job, _: Context| async { Ok(()) }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_see_redis_go_and_come_back() {
    let server = Server::redis().await;
    let supervisor = Supervisor::new("shop").consumer(consumer(server.source("orders")));
    let tree = supervisor.health_http(ANY).start(server.connect().await).await.expect("starts");
    let (address, log) = (address(&tree), Log::of(&tree));
    tree.until_ready().await.expect("ready");
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(get(address, "/healthz").await, (200, "ready\n".to_owned()));
    assert_eq!(get_json(address, "/readyz").await, (200, json!({ "live": true, "ready": true, "why": [] })));

    server.on(Server::kill9).await;
    log.until(0, "billing", |what| matches!(what, EventKind::Failed { outage: true, .. })).await;
    let (status, body) = get(address, "/readyz").await;
    assert!(status == 503 && body.starts_with("shop/billing: broker unreachable for"), "{status} {body}");
    let (status, body) = get_json(address, "/readyz").await;
    assert!(status == 503 && body["live"] == true && body["ready"] == false, "{status} {body}");
    assert!(body["why"][0].as_str().is_some_and(|why| why.starts_with("shop/billing: ")), "{body}");
    assert_eq!(get(address, "/livez").await, (200, "live\n".to_owned()), "a restart would not help");

    server.on(Server::restart).await;
    tree.until_ready().await.expect("ready");
    assert_eq!(get(address, "/readyz").await.0, 200);
    let (status, body) = get(address, "/status").await;
    assert!(status == 200 && body.starts_with("supervisor shop - running\n  consumer billing"), "{body}");

    tree.drain().await.expect("drains");
    let gone = blocking(move || TcpStream::connect(address).is_err()).await;
    assert!(gone, "it ends with the tree");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_gave_up_is_not_live() {
    let failing = || async { Err::<(), _>("always") };
    let supervisor = Supervisor::new("shop").task("report", failing).health_http(ANY);
    let supervisor = supervisor.intensity(steadfast::RestartIntensity::new(0, PATIENCE));
    let broker = steadfast::connect("embedded:").await.expect("there");
    let tree = supervisor.start(broker).await.expect("starts");
    tree.ended().await.expect_err("gave up");
    let (status, body) = get(address(&tree), "/livez").await;
    assert!(status == 503 && body.contains("gave up"), "{status} {body}");
    let address = address(&tree);
    tree.drain().await.expect_err("gave up");
    assert!(blocking(move || TcpStream::connect(address).is_err()).await, "it ends with the tree");
}

#[tokio::test]
async fn other_questions_are_refused() {
    let broker = steadfast::connect("embedded:").await.expect("there");
    let tree = Supervisor::new("shop").health_http(ANY).start(broker).await.expect("starts");
    let address = address(&tree);
    blocking(move || {
        assert_eq!(ask(address, "GET", "/", "*/*").status, 404);
        let posted = ask(address, "POST", "/readyz", "*/*");
        assert!(
            posted.status == 405 && posted.head.to_lowercase().contains("allow: get, head"),
            "{}",
            posted.head
        );
        let asked = ask(address, "HEAD", "/livez", "*/*");
        assert_eq!((asked.status, asked.body.as_str()), (200, ""));
        let long = format!("/{}", "x".repeat(100_000));
        let mut stream = TcpStream::connect(address).expect("connects");
        // it may hang up before all of it is written
        drop(stream.write_all(format!("GET {long} HTTP/1.1\r\n\r\n").as_bytes()));
        assert_eq!(ask(address, "GET", "/livez", "*/*").status, 200);
    })
    .await;
    tree.drain().await.expect("drains");
}

#[tokio::test]
async fn a_taken_address_is_named_and_nothing_is_started() {
    let taken = TcpListener::bind(ANY).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, _taken) = taken.expect("listens");
    let broker = steadfast::connect("embedded:").await.expect("there");
    let supervisor = || Supervisor::new("shop").health_http(address);
    let error = supervisor().start(broker.clone()).await.expect_err("taken").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    let nested = Supervisor::new("root").supervisor(supervisor());
    let error = nested.start(broker).await.expect_err("not the root").to_string();
    assert!(error.contains("`shop` is not the root"), "{error}");
}

/// Both in real time: threads are blocked, and clients say nothing until the server has had enough of them.
#[test]
fn it_answers_while_every_thread_is_blocked_and_others_dawdle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("builds");
    let (began, blocks) = std::sync::mpsc::channel();
    let tree = runtime.block_on(async {
        let broker = steadfast::connect("embedded:").await.expect("there");
        let consumer = Consumer::new("billing", Source::queue("orders")).handler(move || {
            let began = began.clone();
            handler_fn(move |_: Job, _: Context| {
                // whoever waits for it may have gone
                let _ = began.send(());
                std::thread::sleep(Duration::from_secs(4));
                std::future::ready(Ok(()))
            })
        });
        let supervisor = Supervisor::new("shop").consumer(consumer).health_http(ANY);
        let tree = supervisor.start(broker.clone()).await.expect("starts");
        tree.until_ready().await.expect("ready");
        let message = Outgoing::new("orders", r#"{"id":1,"order":"Work"}"#);
        let message = Outgoing { message_type: Some("job".to_owned()), ..message };
        broker.publisher().await.expect("publishes").send(message).await.expect("published");
        tree
    });
    blocks.recv_timeout(PATIENCE).expect("the handler blocks the only thread");
    let (address, blocked) = (address(&tree), Instant::now());
    assert_eq!(ask(address, "GET", "/livez", "*/*").status, 200);
    while ask(address, "GET", "/readyz", "*/*").status == 200 {
        assert!(blocked.elapsed() < Duration::from_secs(3), "it is not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    let why = ask(address, "GET", "/readyz", "*/*").body;
    assert!(why.contains("blocks its thread") && blocked.elapsed() < Duration::from_secs(3), "{why}");

    let dawdlers: Vec<_> = (0..40).map(|_| TcpStream::connect(address).expect("connects")).collect();
    let asked = Instant::now();
    assert_eq!(ask(address, "GET", "/livez", "*/*").status, 200);
    assert!(asked.elapsed() < Duration::from_secs(11), "{:?}", asked.elapsed());
    drop(dawdlers);
    runtime.block_on(tree.drain()).expect("drains");
}
