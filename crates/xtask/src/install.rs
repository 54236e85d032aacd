//! Installs what the tests need and the machine lacks, where that is possible, and says what to install elsewhere.

use std::env;

use steadfast_testbed::BrokerSet;

use crate::runner::{Failure, Runner};

/// A package of Debian starts its service when it is installed, on the default port and for ever, unless this file says
/// no. An administrator's own file stays.
const INSTALL: &str = r#"
set -e
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@"
"#;

/// The brokers, Python for the tests that exchange messages with its clients, what makes certificates, and a wrong clock
/// where it can be had.
pub(crate) fn run(runner: &mut Runner) -> Result<(), Failure> {
    install(runner, |runner| {
        [missing_brokers(), missing_python(runner), missing_openssl(), missing_clock(runner)].concat()
    })
}

/// The brokers alone.
pub(crate) fn brokers(runner: &mut Runner) -> Result<(), Failure> {
    install(runner, |_| missing_brokers())
}

fn install(runner: &mut Runner, look: impl Fn(&Runner) -> Vec<&'static str>) -> Result<(), Failure> {
    let missing = look(runner);
    if missing.is_empty() {
        return Ok(());
    }
    if !can_install(runner) {
        return Err(Failure::new(format!(
            "the tests need these Debian packages, or their like on this system: {}\n\
             (run as root on a system with apt-get, this command installs them itself)",
            missing.join(" ")
        )));
    }
    let mut command = runner.command("sh");
    command.args(["-c", INSTALL, "install"]).args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    runner.run(&format!("install {}", missing.join(" ")), &mut command)?;
    let still = look(runner);
    if still.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("installed, but unusable: {}", still.join(" "))))
    }
}

fn missing_brokers() -> Vec<&'static str> {
    let system = BrokerSet::distribution();
    let needs = [
        ("redis-server", ["redis-server", "redis-cli"]),
        ("rabbitmq-server", ["rabbitmq-server", "rabbitmqctl"]),
    ];
    needs
        .into_iter()
        .filter(|(_, programs)| !programs.iter().all(|program| system.has(program)))
        .map(|(package, _)| package)
        .collect()
}

fn missing_python(runner: &Runner) -> Vec<&'static str> {
    // Debian's python3 has `venv` without `ensurepip` until python3-venv is there.
    let usable = runner
        .ask(runner.command("python3").args(["-c", "import venv, ensurepip"]))
        .is_ok_and(|said| said.success);
    if usable { Vec::new() } else { vec!["python3", "python3-venv"] }
}

/// For servers that are met by TLS.
fn missing_openssl() -> Vec<&'static str> {
    if on_path("openssl") { Vec::new() } else { vec!["openssl"] }
}

/// For consumers whose clock is off. The tests do without where it would have to be installed by hand.
fn missing_clock(runner: &Runner) -> Vec<&'static str> {
    if on_path("faketime") || !can_install(runner) { Vec::new() } else { vec!["faketime"] }
}

fn can_install(runner: &Runner) -> bool {
    is_root(runner) && on_path("apt-get")
}

fn is_root(runner: &Runner) -> bool {
    runner.ask(runner.command("id").arg("-u")).is_ok_and(|said| said.out.trim() == "0")
}

fn on_path(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file())
}
