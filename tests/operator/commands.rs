//! Each command on each broker: what it says, what it changes, and its exit code.

use serde_json::Value;

use crate::rig::Rig;

async fn lists_and_shows(rig: &Rig) {
    let dead = rig.dead();
    let list = rig.run(&["dead", "list", &dead, "--json", "--limit", "3"]).await;
    let ids: Vec<Value> = list.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((list.code, ids.len(), &ids[0]["id"]), (Some(0), 3, &Value::from("m-0")), "{list:?}");
    let groups = rig.run(&["dead", "list", &dead, "--group"]).await;
    assert!(
        groups.out.contains("00000000000000aa") && groups.out.contains("the ledger is closed"),
        "{groups:?}"
    );
    assert_eq!(groups.out.lines().count(), 3, "{groups:?}");
    let none = rig.run(&["dead", "list", &dead, "--text", "no such text"]).await;
    assert_eq!(none.code, Some(3), "{none:?}");
    let shown = rig.run(&["dead", "show", &dead, "--id", "m-7"]).await;
    assert!(shown.out.contains("{\"id\":7}") && shown.out.contains("order.placed"), "{shown:?}");
    assert_eq!(rig.ready(&dead).await, 20, "looking changes nothing");
}

async fn asks_before_it_changes(rig: &Rig) {
    let dead = rig.dead();
    for command in ["discard", "redrive"] {
        let dry = rig
            .run(&["dead", command, &dead, "--dry-run", "--json", "--fingerprint", "00000000000000aa"])
            .await;
        assert_eq!((dry.code, &dry.json()["fit"]), (Some(0), &Value::from(10)), "{dry:?}");
        let refused = rig.run(&["dead", command, &dead]).await;
        assert_eq!(refused.code, Some(6), "{refused:?}");
        assert!(refused.err.contains("20") && refused.err.contains("--yes"), "{refused:?}");
    }
    assert_eq!(rig.ready(&dead).await, 20);
}

/// Out into a file, gone, and in again.
async fn exports_and_imports(rig: &Rig) {
    let dead = rig.dead();
    let before = rig.run(&["dead", "show", &dead, "--id", "m-7", "--json"]).await.json();
    let exported = rig.run(&["dead", "export", &dead, "letters"]).await;
    assert_eq!(exported.code, Some(0), "{exported:?}");
    assert!(rig.path("letters").exists());
    assert_eq!(rig.run(&["dead", "export", &dead, "letters"]).await.code, Some(1), "it is there already");
    let discarded = rig.run(&["dead", "discard", &dead, "--yes", "--json"]).await;
    assert_eq!((discarded.code, &discarded.json()["deleted"]), (Some(0), &Value::from(20)), "{discarded:?}");
    assert_eq!(rig.ready(&dead).await, 0);
    let imported = rig.run(&["dead", "import", &dead, "letters", "--yes"]).await;
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert_eq!(rig.ready(&dead).await, 20);
    let after = rig.run(&["dead", "show", &dead, "--id", "m-7", "--json"]).await.json();
    assert_eq!(before, after);
}

async fn edits_and_parks(rig: &Rig) {
    let dead = rig.dead();
    std::fs::write(rig.path("body"), "{\"id\":700}").expect("writes");
    let edit =
        ["dead", "redrive", &dead, "--yes", "--json", "--id", "m-7", "--body", "body", "--ramp", "none"];
    let edited = rig.run(&edit).await;
    assert_eq!((edited.code, &edited.json()["sent"]), (Some(0), &Value::from(1)), "{edited:?}");
    let shown =
        rig.run(&["dead", "show", &rig.queue, "--header", "steadfast-edited-from=m-7", "--json"]).await;
    assert_eq!(shown.json()["body"]["text"], "{\"id\":700}");
    let park = ["dead", "redrive", &dead, "--yes", "--json", "--park-after", "0", "--ramp", "none"];
    let parked = rig.run(&park).await;
    assert_eq!(parked.json()["parked"], 19, "{parked:?}");
    assert_eq!(rig.ready(&format!("{dead}.parked")).await, 19);
}

async fn looks_and_publishes(rig: &Rig) {
    let published = rig.run(&["publish", &rig.queue, "--body", "{}", "--type", "ping", "--json"]).await;
    assert_eq!(published.code, Some(0), "{published:?}");
    let seen = rig.run(&["inspect", &rig.queue, "--json"]).await.json();
    assert_eq!(seen["ready"], 2, "{seen}");
    let missing = rig.run(&["dead", "list", "no-such-place"]).await;
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.err.contains("no-such-place"), "{missing:?}");
    let pending = rig.run(&["pending", "list", &rig.queue]).await;
    assert_eq!(pending.code, Some(if rig.is_redis() { 3 } else { 1 }), "{pending:?}");
}

async fn everything(rig: Rig) {
    rig.letters(20).await;
    lists_and_shows(&rig).await;
    asks_before_it_changes(&rig).await;
    exports_and_imports(&rig).await;
    edits_and_parks(&rig).await;
    looks_and_publishes(&rig).await;
}

#[tokio::test]
async fn rabbit_every_command_does_what_it_says() {
    everything(Rig::rabbit().await).await;
}

#[tokio::test]
async fn redis_every_command_does_what_it_says() {
    everything(Rig::redis().await).await;
}

/// The dead letters, and those that are parked, are on other nodes than the stream, as a rule.
#[tokio::test]
async fn redis_cluster_every_command_does_what_it_says() {
    everything(Rig::redis_cluster().await).await;
}

#[tokio::test]
async fn without_a_broker_it_says_why_and_completions_need_none() {
    let run = |arguments: &[&str]| {
        std::process::Command::new(steadfast_tests::operator()).args(arguments).output().expect("runs")
    };
    let embedded = run(&["--broker", "embedded:shop", "dead", "list", "q"]);
    assert_eq!(embedded.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&embedded.stderr).contains("inside its process"));
    let completions = run(&["completions", "bash"]);
    assert!(completions.status.success());
    assert!(String::from_utf8_lossy(&completions.stdout).contains("redrive"));
    assert_eq!(run(&["dead", "list"]).status.code(), Some(2), "no place");
}
