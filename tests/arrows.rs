//! The arrows between the crates, by what cargo and the source say: who may need whom, and which file may name what.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

/// What each crate of ours may need of our own in what it ships. A crate that is not here is for this workspace only.
const ARROWS: [(&str, &[&str]); 8] = [
    ("steadfast-core", &[]),
    ("steadfast-macros", &[]),
    ("steadfast-amqp", &["steadfast-core"]),
    ("steadfast-streams", &["steadfast-core"]),
    ("steadfast-embedded", &["steadfast-core"]),
    ("steadfast-conformance", &["steadfast-core"]),
    (
        "steadfast",
        &["steadfast-amqp", "steadfast-core", "steadfast-embedded", "steadfast-macros", "steadfast-streams"],
    ),
    ("steadfast-cli", &["steadfast"]),
];

/// Who may need these directly. Tests look at a broker from outside and benches measure the bare client.
const OUTSIDE: [(&str, &[&str]); 5] = [
    ("lapin", &["steadfast-amqp", "steadfast-tests", "steadfast-benches"]),
    ("redis", &["steadfast-streams", "steadfast-tests", "steadfast-benches"]),
    ("ractor", &["steadfast-core", "steadfast-benches"]),
    ("backoff", &["steadfast-core"]),
    ("bincode", &["steadfast-core"]),
];

/// Without the dependencies of dependencies: the arrows are those that our own manifests draw.
fn packages() -> Vec<Value> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| String::from("cargo"));
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("there are packages").clone()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("a package has a name")
}

/// What a package needs, in what it ships (`kind` is null) or in anything, such as its tests.
fn needs(package: &Value, in_tests_too: bool) -> BTreeSet<&str> {
    let dependencies = package["dependencies"].as_array().expect("a package has dependencies");
    dependencies.iter().filter(|dependency| in_tests_too || dependency["kind"] != "dev").map(name).collect()
}

#[test]
fn our_crates_need_each_other_in_one_direction_only() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(name).collect();
    for (from, allowed) in ARROWS {
        let package = packages.iter().find(|package| name(package) == from).expect(from);
        for needed in needs(package, false).intersection(&ours) {
            assert!(allowed.contains(needed), "{from} must not need {needed}");
        }
    }
    // A new crate has to be given its place above, or stay at home.
    for package in &packages {
        let has_place = ARROWS.iter().any(|(from, _)| *from == name(package));
        let stays = package["publish"] == serde_json::json!([]);
        assert!(
            has_place != stays,
            "{} has no place among the arrows, or should not be published",
            name(package)
        );
    }
}

#[test]
fn what_is_shipped_needs_nothing_that_stays_at_home() {
    let packages = packages();
    let at_home: BTreeSet<&str> =
        packages.iter().map(name).filter(|package| ARROWS.iter().all(|(from, _)| from != package)).collect();
    for package in packages.iter().filter(|package| !at_home.contains(name(package))) {
        let wrong: Vec<_> = needs(package, false).intersection(&at_home).copied().collect();
        assert!(wrong.is_empty(), "{} must not need {wrong:?}", name(package));
    }
}

#[test]
fn each_client_is_needed_in_one_crate_only() {
    for package in packages() {
        for (outside, allowed) in OUTSIDE {
            let names_it = needs(&package, true).contains(outside);
            assert!(
                !names_it || allowed.contains(&name(&package)),
                "{} must not need {outside}",
                name(&package)
            );
        }
    }
}

/// A package of that name would take `::core` from the code that macros write.
#[test]
fn no_package_or_library_is_named_core() {
    for package in packages() {
        assert_ne!(name(&package), "core");
        let targets = package["targets"].as_array().expect("a package has targets");
        assert!(
            targets.iter().all(|target| target["name"] != "core"),
            "{} has a target named core",
            name(&package)
        );
    }
}

#[test]
fn ractor_is_named_in_the_actor_folder_only() {
    let actor = core().join("actor");
    for file in files_that_name("ractor") {
        assert_eq!(file.parent(), Some(actor.as_path()), "{} names ractor", file.display());
    }
}

#[test]
fn the_unmaintained_are_named_in_one_file_each() {
    for crate_name in ["bincode", "backoff"] {
        let files = files_that_name(crate_name);
        assert!(files.len() <= 1, "{crate_name} is named in {files:?}");
    }
}

/// The lines below use the same scanner as the tests above: it must see code, and nothing else.
#[test]
fn only_code_that_names_a_crate_counts() {
    for line in [
        "use ractor::Actor;",
        "let a: ractor::ActorRef<M>;",
        "    ::ractor::spawn();",
        "extern crate ractor;",
    ] {
        assert!(line_names(line, "ractor"), "{line}");
    }
    for line in
        ["// ractor::Actor", "/// as `ractor::Actor` does", "//! ractor", "let tractor::x;", "mod bincode;"]
    {
        assert!(!line_names(line, "ractor"), "{line}");
    }
    assert!(line_names("use bincode;", "bincode") && !line_names("use crate::codec::bincode::X;", "bincode"));
}

fn core() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/core/src")
}

fn files_that_name(crate_name: &str) -> Vec<PathBuf> {
    let files = rust_files(&core());
    assert!(!files.is_empty());
    let names = |file: &PathBuf| {
        let text = fs::read_to_string(file).expect("a source file is text");
        text.lines().any(|line| line_names(line, crate_name))
    };
    files.into_iter().filter(names).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let sources =
        files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    sources.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}

/// Whether a line uses the crate by a path or imports it whole. A module or a feature of the same name is ours.
fn line_names(line: &str, crate_name: &str) -> bool {
    let code = line.trim_start();
    if code.starts_with("//") {
        return false;
    }
    let whole =
        [format!("use {crate_name};"), format!("use {crate_name} as"), format!("extern crate {crate_name};")];
    whole.iter().any(|import| code.contains(import.as_str()))
        || code.match_indices(&format!("{crate_name}::")).any(|(at, _)| {
            let before = &code[..at];
            let inside_a_word = before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
            // `crate::codec::bincode::` is a module of ours, `::bincode::` at the start of a path is the crate.
            let inside_a_path = before
                .strip_suffix("::")
                .is_some_and(|path| path.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_'));
            !inside_a_word && !inside_a_path
        })
}
