//! The main job, run as a user runs it, on each broker.
#![expect(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use steadfast_testbed::{shared, unique};
use steadfast_tests::example;

const MAX_ATTEMPTS: u64 = 5;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data/orders.ndjson")
}

const FAILS_ALWAYS: &str =
    r#"{"type":"order.placed","id":1,"customer":"c","cents":5,"simulate":"fail_always"}"#;

/// A file of orders for one test.
struct Input(PathBuf);

impl Input {
    fn with(lines: &str) -> Self {
        let path = std::env::temp_dir().join(unique("orders")).with_extension("ndjson");
        fs::write(&path, lines).expect("writes");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a name in UTF-8")
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn orders(arguments: &[&str]) -> Output {
    Command::new(example("orders")).args(arguments).output().expect("starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of stdout, as the issue of this example promises it to scripts.
fn last_object(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}{}", stderr(output)))
}

/// What must become of these lines, from what the lines say and nothing else.
fn expected(lines: &str) -> Value {
    let (mut published, mut retried, mut restarts) = (0_u64, 0, 0);
    let mut dead = BTreeMap::<_, u64>::new();
    for line in lines.lines() {
        published += 1;
        let order: Value = serde_json::from_str(line).unwrap_or_default();
        let rest = if order["type"] == "order.placed" { &order["cents"] } else { &order["reason"] };
        let decodes = order["id"].is_u64() && order["customer"].is_string() && !rest.is_null();
        match order["simulate"].as_str() {
            _ if !decodes => *dead.entry("undecodable").or_default() += 1,
            Some("fail_once") => retried += 1,
            Some("fail_always") => {
                retried += MAX_ATTEMPTS - 1;
                *dead.entry("exhausted").or_default() += 1;
            }
            Some("panic") => {
                retried += MAX_ATTEMPTS - 1;
                restarts += MAX_ATTEMPTS;
                *dead.entry("panicked").or_default() += 1;
            }
            other => assert_eq!(other, None, "{line}"),
        }
    }
    let handled = published - dead.values().sum::<u64>();
    json!({
        "published": published, "handled": handled, "retried": retried, "dead": dead, "restarts": restarts, "lost": 0,
    })
}

/// The whole object, with nothing in it but the rate beside what is expected.
fn check(output: &Output, expected: &Value) {
    assert!(output.status.success(), "{}", stderr(output));
    let mut found = last_object(output);
    let rate = found.as_object_mut().and_then(|found| found.remove("per_second"));
    assert!(rate.as_ref().and_then(Value::as_f64).is_some_and(|rate| rate > 0.0), "{rate:?}");
    assert_eq!(&found, expected);
}

fn the_shipped_orders_on(url: &str) {
    let lines = fs::read_to_string(shipped()).expect("ships");
    let expected = expected(&lines);
    assert_eq!(expected["dead"], json!({ "exhausted": 20, "panicked": 10, "undecodable": 20 }));
    assert_eq!(expected["published"], 10_000);
    check(&orders(&["--json", "--broker", url]), &expected);
}

#[test]
fn the_shipped_orders_on_embedded() {
    the_shipped_orders_on("embedded:");
}

#[test]
fn the_shipped_orders_on_rabbitmq() {
    the_shipped_orders_on(shared::rabbit_url());
}

#[test]
fn the_shipped_orders_on_redis() {
    the_shipped_orders_on(shared::redis_url());
}

#[test]
fn orders_come_from_stdin_and_an_unknown_type_is_a_reason_of_its_own() {
    let lines = [
        r#"{"type":"order.placed","id":1,"customer":"c-1","cents":5}"#,
        r#"{"type":"order.shipped","id":2}"#,
        r#"{"type":"order.cancelled","id":3,"customer":"c-1","reason":"late","simulate":"fail_once"}"#,
        "",
        "not JSON at all",
    ];
    let mut command = Command::new(example("orders"));
    command
        .args(["--json", "--input", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(lines.join("\n").as_bytes()).expect("reads");
    drop(stdin);
    let expected = json!({
        "published": 4, "handled": 2, "retried": 1, "dead": { "undecodable": 1, "unknown-type": 1 }, "restarts": 0,
        "lost": 0,
    });
    check(&child.wait_with_output().expect("ends"), &expected);
}

#[test]
fn the_table_says_the_same_and_a_run_on_a_used_queue_counts_only_its_own() {
    let (url, queue) = (shared::redis_url(), unique("orders"));
    let file = Input::with(FAILS_ALWAYS);
    for _ in 0..2 {
        let output = orders(&["--broker", url, "--queue", &queue, "--input", file.path()]);
        assert!(output.status.success(), "{}", stderr(&output));
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let row = |name: &str| {
            let row = table
                .lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .unwrap_or_else(|| panic!("{table}"));
            row.trim().to_owned()
        };
        let rows = ["published", "handled", "dead", "exhausted", "lost"].map(row);
        assert_eq!(rows, ["1", "0", "1", "1", "0"], "{table}");
        assert!(
            stderr(&output).contains(&format!("`{queue}.dead`")),
            "names what it uses: {}",
            stderr(&output)
        );
    }
}

#[test]
fn an_order_that_is_still_under_way_at_the_deadline_is_an_error() {
    let file = Input::with(FAILS_ALWAYS);
    let output = orders(&["--json", "--deadline", "0", "--input", file.path()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    // how far it comes by then is chance, and each has its own words
    let said = ["not done 0 s after the start", "1 orders are lost"];
    assert!(said.iter().any(|said| stderr(&output).contains(said)), "{}", stderr(&output));
}

#[test]
fn errors_name_what_is_wrong_and_the_way_out() {
    for (arguments, says) in [
        (["--input", "no/such/file"], ["no/such/file", "No such file"]),
        (["--broker", "kafka://localhost"], ["kafka", "embedded:"]),
        (["--broker", "amqp://127.0.0.1:1"], ["no broker answers", "rabbitmq-server"]),
        (["--broker", "redis://127.0.0.1:1"], ["no broker answers", "redis-server"]),
    ] {
        let output = orders(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = stderr(&output);
        assert!(says.iter().all(|part| text.contains(part)), "{arguments:?}: {text}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn the_shipped_orders_are_those_of_the_generator() {
    let output = Command::new(example("generate_orders")).output().expect("starts");
    assert!(output.status.success());
    assert!(output.stdout == fs::read(shipped()).expect("ships"), "run examples/generate_orders.rs again");
}
