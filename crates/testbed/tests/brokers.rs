//! The private brokers themselves: that they start, come back where they were, stay on the loopback address and leave
//! nothing behind. They run with the brokers that the environment names, see `BrokerSet::from_env`.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use steadfast_testbed::{
    Append, ClusterOptions, Rabbit, RabbitOptions, Redis, RedisCluster, RedisOptions, TestbedErrorKind,
    shared, unique,
};

/// Set for the helper process of `nothing_is_left_of_a_process_that_was_killed`.
const HELPER: &str = "STEADFAST_TESTBED_HELPER";

#[test]
fn rabbit_comes_back_on_its_port_with_its_data() {
    let rabbit = Rabbit::start(&RabbitOptions::new().config("heartbeat = 7")).expect("starts");
    let (url, first) = (rabbit.url(), rabbit.pid());
    assert!(rabbit.version().starts_with(|digit: char| digit.is_ascii_digit()), "{}", rabbit.version());
    assert_eq!(
        rabbit.ctl(&["eval", "application:get_env(rabbit, heartbeat)."]).expect("evaluates").trim(),
        "{ok,7}"
    );

    rabbit.ctl(&["add_vhost", "kept"]).expect("adds");
    rabbit.stop().expect("stops");
    assert_eq!(rabbit.pid(), None);
    assert!(rabbit.ctl(&["list_vhosts"]).is_err_and(|error| error.kind() == TestbedErrorKind::Refused));
    rabbit.restart().expect("starts again");
    assert_eq!(rabbit.url(), url);
    assert_ne!(rabbit.pid(), first);
    assert!(rabbit.ctl(&["list_vhosts"]).expect("lists").contains("kept"));

    rabbit.kill9().expect("is killed");
    rabbit.restart().expect("starts after a kill");
    assert!(rabbit.ctl(&["list_vhosts"]).expect("lists").contains("kept"));
    let (processes, folder) = (rabbit.processes(), rabbit.folder().to_owned());
    drop(rabbit);
    assert_gone(&processes, &folder);
}

#[test]
fn redis_comes_back_on_its_port_with_its_data() {
    let redis = Redis::start(&RedisOptions::new().append(Append::Always)).expect("starts");
    let url = redis.url();
    redis.cli(&["SET", "kept", "yes"]).expect("sets");

    redis.kill9().expect("is killed");
    assert_eq!(redis.pid(), None);
    assert!(redis.pause().is_err_and(|error| error.kind() == TestbedErrorKind::Ended));
    redis.restart().expect("starts after a kill");
    assert_eq!(redis.url(), url);
    assert_eq!(redis.cli(&["GET", "kept"]).expect("gets").trim(), "yes");

    redis.restart().expect("is stopped and starts");
    assert_eq!(redis.cli(&["GET", "kept"]).expect("gets").trim(), "yes");
    let (processes, folder) = (redis.processes(), redis.folder().to_owned());
    drop(redis);
    assert_gone(&processes, &folder);
}

#[test]
fn a_cluster_moves_slots_and_takes_a_node_back_with_its_data() {
    let node = RedisOptions::new().append(Append::Always);
    let cluster = RedisCluster::start(&ClusterOptions::new().node(node)).expect("starts");
    let own = |node: usize| cluster.unique_on(node, "kept").expect("answers");
    let keys: Vec<String> = (0..3).map(own).collect();
    for (node, key) in cluster.nodes().iter().zip(&keys) {
        node.cli(&["SET", key, key]).expect("is its own");
        node.cli(&["SET", &format!("{{{key}}}:beside"), key]).expect("is its own, too");
    }
    let get = |node: usize, key: &str| cluster.nodes()[node].cli(&["GET", key]);
    let elsewhere = get(0, &keys[1]).expect_err("another's");
    assert!(elsewhere.to_string().contains("MOVED"), "{elsewhere}");

    cluster.move_slot(&keys[0], 2).expect("moves");
    assert_eq!(cluster.node_of(&keys[0]).expect("answers"), 2);
    assert_eq!(get(2, &keys[0]).expect("has it").trim(), keys[0]);
    assert_eq!(get(2, &format!("{{{}}}:beside", keys[0])).expect("has it").trim(), keys[0]);
    assert!(get(1, &keys[0]).expect_err("another's").to_string().contains("MOVED"));

    let half = cluster.begin_move(&keys[1], 0).expect("begins");
    assert_eq!(half.migrate(1).expect("moves"), 1);
    let both = ["EXISTS", &*keys[1], &format!("{{{}}}:beside", keys[1])];
    let error = cluster.nodes()[1].cli(&both).expect_err("half of it is there");
    assert!(error.to_string().contains("TRYAGAIN"), "{error}");
    half.finish().expect("ends");
    assert_eq!(cluster.nodes()[0].cli(&both).expect("has both").trim(), "2");

    cluster.kill9(2).expect("is killed");
    assert_eq!(cluster.node_of(&keys[2]).expect("the others know"), 2);
    cluster.nodes()[0].cli(&["SET", &keys[1], "new"]).expect("the others go on");
    cluster.restart(2).expect("starts again");
    assert_eq!(get(2, &keys[2]).expect("kept").trim(), keys[2]);
    assert_eq!(get(2, &keys[0]).expect("kept").trim(), keys[0]);

    let gone: Vec<_> =
        cluster.nodes().iter().map(|node| (node.processes(), node.folder().to_owned())).collect();
    for (processes, _) in &gone {
        let listeners = listeners_of(processes);
        assert_eq!(listeners.len(), 2, "one for clients, one for the other nodes: {listeners:?}");
        assert!(listeners.iter().all(|address| address.starts_with(IPV4_LOOPBACK)), "{listeners:?}");
    }
    drop(cluster);
    for (processes, folder) in gone {
        assert_gone(&processes, &folder);
    }
}

#[test]
fn a_cluster_that_wants_all_of_its_slots_is_down_without_one_node() {
    let options = ClusterOptions::new().full_coverage(true);
    let cluster = RedisCluster::start(&options).expect("starts");
    let key = cluster.unique_on(0, "kept").expect("answers");
    cluster.kill9(1).expect("is killed");
    // Polling servers that take their time to agree, up to a deadline.
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        match cluster.nodes()[0].cli(&["SET", &key, "x"]) {
            Err(error) => break assert!(error.to_string().contains("CLUSTERDOWN"), "{error}"),
            Ok(_) => assert!(Instant::now() < give_up, "it goes on without one of three"),
        }
        thread::sleep(Duration::from_millis(20));
    }
    cluster.restart(1).expect("starts again");
    cluster.nodes()[0].cli(&["SET", &key, "x"]).expect("is well");
}

#[test]
fn a_paused_redis_says_nothing_until_it_goes_on() {
    let redis = Redis::start(&RedisOptions::new()).expect("starts");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", redis.port())).expect("connects");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("takes a timeout");

    redis.pause().expect("pauses");
    stream.write_all(b"PING\r\n").expect("the kernel takes it");
    let mut answer = [0; 7];
    assert!(stream.read_exact(&mut answer).is_err(), "nothing answers");

    redis.resume().expect("goes on");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("takes a timeout");
    stream.read_exact(&mut answer).expect("answers");
    assert_eq!(&answer, b"+PONG\r\n");

    redis.pause().expect("pauses");
    redis.stop().expect("a paused server can be stopped");
}

#[test]
fn a_server_that_does_not_start_is_quoted() {
    let error =
        Redis::start(&RedisOptions::new().argument("--no-such-option").argument("1")).expect_err("refuses");
    assert_eq!(error.kind(), TestbedErrorKind::Ended);
    assert!(error.to_string().contains("no-such-option"), "{error}");

    let error = Rabbit::start(&RabbitOptions::new().config("no.such.option = 1")).expect_err("refuses");
    assert_eq!(error.kind(), TestbedErrorKind::Ended);
    assert!(error.to_string().contains("failed_to_prepare_configuration"), "{error}");
}

#[test]
fn an_error_reply_is_an_error() {
    let redis = Redis::start(&RedisOptions::new()).expect("starts");
    let error = redis.cli(&["XADD", "too", "few"]).expect_err("refuses");
    assert_eq!(error.kind(), TestbedErrorKind::Refused);
}

#[test]
fn everything_listens_on_the_loopback_address_only() {
    let rabbit = Rabbit::start(&RabbitOptions::new()).expect("starts");
    let redis = Redis::start(&RedisOptions::new()).expect("starts");
    let listeners = listeners_of(&rabbit.processes());
    assert_eq!(
        listeners.iter().filter(|address| address.starts_with(IPV4_LOOPBACK)).count(),
        3,
        "{listeners:?}"
    );
    for address in listeners.iter().chain(&listeners_of(&redis.processes())) {
        assert!(address.starts_with(IPV4_LOOPBACK) || address.starts_with(IPV6_LOOPBACK), "{address}");
    }
    assert_eq!(listeners_of(&redis.processes()).len(), 1);
}

#[test]
fn nothing_is_left_of_a_process_that_was_killed() {
    let mut helper = Command::new(std::env::current_exe().expect("has a path"))
        .args(["--exact", "helper", "--nocapture"])
        .env(HELPER, "1")
        .env_remove(shared::AMQP_URL)
        .env_remove(shared::REDIS_URL)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(helper.stdout.take().expect("is a pipe")).lines();
    let said: Vec<String> = lines
        .map(|line| line.expect("is text"))
        .skip_while(|line| !line.contains("owns"))
        .skip(1)
        .take_while(|line| line != "ready")
        .collect();
    let (folders, pids): (Vec<&String>, Vec<&String>) = said.iter().partition(|line| line.starts_with('/'));
    assert_eq!(folders.len(), 2, "{said:?}");
    assert!(pids.len() >= 3 && pids.iter().all(|pid| alive(pid)), "{said:?}");

    helper.kill().expect("is killed");
    helper.wait().expect("is waited for");

    // Polling processes that are not our children, up to a deadline.
    let give_up = Instant::now() + Duration::from_secs(20);
    while pids.iter().any(|pid| alive(pid)) || folders.iter().any(|folder| Path::new(folder).exists()) {
        assert!(Instant::now() < give_up, "still there: {said:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Not a test by itself: the process that is killed in the test above. It has brokers in statics, too.
#[test]
fn helper() {
    if std::env::var_os(HELPER).is_none() {
        return;
    }
    let rabbit = Rabbit::start(&RabbitOptions::new()).expect("starts");
    let redis = Redis::start(&RedisOptions::new()).expect("starts");
    let mut out = std::io::stdout();
    writeln!(out, "\nowns").expect("writes");
    for folder in [rabbit.folder(), redis.folder()] {
        writeln!(out, "{}", folder.display()).expect("writes");
    }
    for pid in [rabbit.processes(), redis.processes()].concat() {
        writeln!(out, "{pid}").expect("writes");
    }
    writeln!(out, "ready").expect("writes");
    // Until it is killed, or the test is gone.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn the_shared_brokers_answer_and_are_the_same_for_everyone() {
    assert!(std::ptr::eq(shared::redis_url(), shared::redis_url()));
    assert!(shared::redis_url().starts_with("redis://"));
    assert!(shared::rabbit_url().starts_with("amqp://"));
    assert_ne!(unique("queue"), unique("queue"));
}

/// 127.x.x.x as `/proc/net/tcp` writes it on a little-endian machine: the last two digits are the first byte.
const IPV4_LOOPBACK: &str = "0100007F:";
/// `::1`, on which the port mapper listens whatever it is told.
const IPV6_LOOPBACK: &str = "00000000000000000000000001000000:";

/// The local addresses on which these processes listen, as the kernel writes them.
fn listeners_of(pids: &[u32]) -> Vec<String> {
    let sockets: HashSet<String> = pids
        .iter()
        .flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten())
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
            // 0A is LISTEN.
            (state == "0A" && sockets.contains(inode)).then(|| local.to_owned())
        })
        .collect()
}

fn assert_gone(processes: &[u32], folder: &Path) {
    assert!(!processes.is_empty(), "there was something to end");
    assert_eq!(processes.iter().filter(|pid| alive(&pid.to_string())).count(), 0);
    assert!(!folder.exists());
}

/// A zombie, which only waits for its parent to notice, is not alive.
fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
