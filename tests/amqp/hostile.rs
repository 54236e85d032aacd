//! What no client library would send: bytes written by hand, and a broker that says more than the client expects.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use lapin::protocol::basic::AMQPProperties;
use steadfast::{Consumer, Context, Failure, Message, Reason, Supervisor, handler_fn};
use steadfast_amqp::Queue;
use steadfast_core::{Broker, Outgoing, Source, SubscribeErrorKind, known};
use steadfast_testbed::unique;

use crate::rig::{Consuming, Outside, body, subscribe, url};

/// Type, channel and payload.
type Frame = (u8, u16, Vec<u8>);

fn read_frame(from: &mut impl Read) -> Option<Frame> {
    let mut prefix = [0; 7];
    from.read_exact(&mut prefix).ok()?;
    let [kind, c1, c0, size @ ..] = prefix;
    let mut payload = vec![0; usize::try_from(u32::from_be_bytes(size)).expect("fits") + 1];
    from.read_exact(&mut payload).ok()?;
    assert_eq!(payload.pop(), Some(0xce));
    Some((kind, u16::from_be_bytes([c1, c0]), payload))
}

fn write_frame(to: &mut impl Write, (kind, channel, payload): &Frame) {
    let size = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let frame = [&[*kind], &channel.to_be_bytes()[..], &size, payload, &[0xce]].concat();
    to.write_all(&frame).expect("writes");
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

fn long(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("small").to_be_bytes()[..], text].concat()
}

fn host(url: &str) -> &str {
    let rest = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    rest.trim_start_matches("amqp://").split('/').next().expect("a host")
}

/// A client of the fewest words, which publishes whatever it is given.
struct Bare(TcpStream);

impl Bare {
    fn connect(url: &str) -> Self {
        let mut socket = TcpStream::connect(host(url)).expect("connects");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
        socket.write_all(b"AMQP\0\0\x09\x01").expect("writes");
        let mut bare = Self(socket);
        bare.expect(10);
        let start_ok =
            [&long(b"")[..], &short(b"PLAIN"), &long(b"\0guest\0guest"), &short(b"en_US")].concat();
        bare.say(0, 10, 11, &start_ok);
        let tune = bare.expect(30);
        bare.say(0, 10, 31, &tune[4..]);
        bare.say(0, 10, 40, &[&short(b"/")[..], &[0, 0]].concat());
        bare.expect(41);
        bare.say(1, 20, 10, &[0]);
        bare.expect(11);
        bare
    }

    fn say(&mut self, channel: u16, class: u8, method: u8, arguments: &[u8]) {
        write_frame(&mut self.0, &(1, channel, [&[0, class, 0, method], arguments].concat()));
    }

    fn expect(&mut self, method: u8) -> Vec<u8> {
        loop {
            let (kind, _, payload) = read_frame(&mut self.0).expect("an answer");
            if kind == 1 {
                assert_eq!(payload[3], method, "{payload:?}");
                return payload;
            }
        }
    }

    fn publish(&mut self, exchange: &[u8], key: &[u8], headers: &[u8], body: &[u8]) {
        let publish = [&[0, 60, 0, 40, 0, 0][..], &short(exchange), &short(key), &[0]].concat();
        let size = u64::try_from(body.len()).expect("small").to_be_bytes();
        // headers, delivery mode
        let header = [&[0, 60, 0, 0][..], &size, &0x3000_u16.to_be_bytes(), headers, &[2]].concat();
        for frame in [(1, 1, publish), (2, 1, header), (3, 1, body.to_vec())] {
            write_frame(&mut self.0, &frame);
        }
        // the broker has taken all of it when it answers what comes next
        self.say(1, 20, 20, &[1]);
        self.expect(21);
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Number(u64);

impl Message for Number {
    const NAME: &'static str = "number";
}

/// A message that a client cannot read must not cost more than itself, however often it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_no_client_can_read_end_as_a_dead_letter() {
    let (url, queue) = (url().await, unique("hostile"));
    let broker = steadfast_amqp::connect(url).await.expect("connects");
    broker.declare(&Source::queue(queue.as_str())).await.expect("declares");
    let nested = (0..1_000).fold(long(b""), |inner, _| long(&[&short(b"n")[..], b"F", &inner].concat()));
    let not_text = long(&[&short(&[0xff, 0xfe])[..], b"t\x01"].concat());
    let name = queue.clone();
    let publishing = tokio::task::spawn_blocking(move || {
        let mut bare = Bare::connect(url);
        bare.publish(b"", name.as_bytes(), &nested, b"1");
        bare.publish(b"", name.as_bytes(), &not_text, b"2");
        bare.publish(b"", name.as_bytes(), &long(b""), b"3");
    });
    publishing.await.expect("publishes");

    let handler = || handler_fn(|_: Number, _: Context| async { Ok::<_, Failure>(()) });
    let tree = Supervisor::new("s").consumer(Consumer::new("c", queue.as_str()).handler(handler));
    let tree = tree.start(broker).await.expect("starts");
    let outside = Outside::connect(url).await;
    let mut letters =
        [outside.get(&format!("{queue}.dead")).await, outside.get(&format!("{queue}.dead")).await];
    letters.sort_by_key(|letter| letter.delivery.data.clone());
    for (letter, (body, why)) in letters.iter().zip([("1", "nested more than 32 deep"), ("2", "not UTF-8")]) {
        assert_eq!(letter.delivery.data, body.as_bytes());
        let headers = letter.delivery.properties.headers().clone().expect("there");
        let text = |name: &str| {
            format!(
                "{:?}",
                headers.inner().get(name).and_then(|value| value.as_long_string()).map(ToString::to_string)
            )
        };
        assert!(text(known::REASON).contains(Reason::BadHeaders.as_str()), "{headers:?}");
        assert!(text(known::ERROR).contains(why) && text(known::UNREADABLE).contains(why), "{headers:?}");
    }
    let stats = || tree.child("c").expect("there").stats;
    crate::rig::eventually("the third to be handled", async || (stats().handled == 1).then_some(())).await;
    assert_eq!((stats().restarts, stats().dead_total()), (0, 2), "the connection stood");
    tree.drain().await.expect("drains");
}

#[tokio::test]
async fn a_routing_key_that_is_no_text_is_delivered() {
    let (url, queue) = (url().await, unique("hostile"));
    let broker = steadfast_amqp::connect(url).await.expect("connects");
    let exchange = unique("any");
    let source = Queue::quorum(queue.as_str()).bind(steadfast_amqp::Exchange::fanout(exchange.as_str()), "");
    let request = subscribe(source.into(), &format!("{queue}.dead"), 5);
    let mut consuming = Consuming(broker.subscribe(request).await.expect("subscribes"));
    let publish = move || Bare::connect(url).publish(exchange.as_bytes(), &[b'a', 0xff], &long(b""), b"1");
    tokio::task::spawn_blocking(publish).await.expect("publishes");
    let delivery = consuming.one().await;
    assert_eq!(delivery.incoming().origin.routing_key.as_deref(), Some("a?"));
    delivery.ack();
    consuming.finish().await;
}

/// Between the client and the broker. When the client confirms that the broker closed a channel, it is told what the broker
/// sometimes had on its way just then: one more delivery, and the answer to a close that crossed.
fn meddler(url: &str) -> String {
    let (listener, server) = (TcpListener::bind("127.0.0.1:0").expect("binds"), host(url).to_owned());
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.expect("accepts"), TcpStream::connect(&server).expect("connects"));
            meddle(client, server);
        }
    });
    format!("amqp://127.0.0.1:{port}")
}

fn meddle(mut client: TcpStream, mut server: TcpStream) {
    let to_client = std::sync::Arc::new(std::sync::Mutex::new(client.try_clone().expect("clones")));
    let mut from_server = server.try_clone().expect("clones");
    let towards_client = std::sync::Arc::clone(&to_client);
    thread::spawn(move || {
        while let Some(frame) = read_frame(&mut from_server) {
            write_frame(&mut *towards_client.lock().expect("whole"), &frame);
        }
        // whoever waits for more is to know
        let _ = towards_client.lock().expect("whole").shutdown(std::net::Shutdown::Both);
    });
    thread::spawn(move || {
        let mut greeting = [0; 8];
        client.read_exact(&mut greeting).expect("greets");
        server.write_all(&greeting).expect("greets");
        while let Some(frame) = read_frame(&mut client) {
            write_frame(&mut server, &frame);
            if let (1, channel, [0, 20, 0, 41, ..]) = (frame.0, frame.1, &frame.2[..]) {
                let deliver =
                    [&[0, 60, 0, 60][..], &short(b"t"), &[0; 7], &[9, 0], &short(b""), &short(b"q")].concat();
                let header = [&[0, 60, 0, 0][..], &1_u64.to_be_bytes(), &[0, 0]].concat();
                let mut client = to_client.lock().expect("whole");
                for frame in [
                    (1, channel, deliver),
                    (2, channel, header),
                    (3, channel, b"x".to_vec()),
                    (1, channel, vec![0, 20, 0, 41]),
                ] {
                    write_frame(&mut *client, &frame);
                }
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Both);
    });
}

#[tokio::test]
async fn what_comes_for_a_closed_channel_costs_no_other_channel() {
    let url = url().await;
    let through = meddler(url);
    let broker = steadfast_amqp::connect(&through).await.expect("connects");
    let queue = unique("sibling");
    let request = subscribe(Source::queue(queue.as_str()), &format!("{queue}.dead"), 5);
    let mut sibling = Consuming(broker.subscribe(request).await.expect("subscribes"));
    let publisher = broker.publisher().await.expect("publishes");
    for round in 0..5 {
        let missing = Source::from(Queue::passive(unique("missing")));
        let error = broker.declare(&missing).await.expect_err("the broker closes the channel");
        assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error:?}");
        publisher.send(Outgoing::new(queue.as_str(), round.to_string())).await.expect("published");
        let delivery = sibling.one().await;
        assert_eq!(body(&delivery), round.to_string());
        delivery.ack();
    }
    sibling.finish().await;
    // and the bare client, to see that the meddler meddles
    let outside =
        lapin::Connection::connect(&through, lapin::ConnectionProperties::default()).await.expect("connects");
    let (other, sibling) =
        (outside.create_channel().await.expect("opens"), outside.create_channel().await.expect("opens"));
    let options = lapin::options::BasicPublishOptions::default();
    let gone = other
        .basic_publish("no-such-exchange".into(), "".into(), options, b"", AMQPProperties::default())
        .await;
    gone.expect("written");
    crate::rig::eventually("the bare client to lose all", async || {
        (!sibling.status().connected()).then_some(())
    })
    .await;
}
