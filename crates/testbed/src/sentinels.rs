//! A private master with its replica, and three sentinels that watch them.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::brokers::{BrokerSet, RedisServer};
use crate::error::{TestbedError, TestbedErrorKind};
use crate::ports;
use crate::redis::{Redis, RedisOptions, probe};
use crate::server::{Server, run_command, until, with_other_ports};

/// What the sentinels call the master.
const MASTER: &str = "orders";
const DEADLINE: Duration = Duration::from_secs(60);

/// Two servers and three sentinels that nobody else knows; they end when this is dropped or the process ends.
#[derive(Debug)]
pub struct Sentinels {
    servers: [Redis; 2],
    watchers: Vec<Server>,
    brokers: BrokerSet,
}

impl Sentinels {
    /// Starts them and waits until the replica follows and all sentinels know each other.
    pub fn start() -> Result<Self, TestbedError> {
        let options = RedisOptions::new().argument("--repl-diskless-sync-delay").argument("0");
        let master = Redis::start(&options)?;
        let of = options.argument("--replicaof").argument("127.0.0.1").argument(master.port().to_string());
        let replica = Redis::start(&of)?;
        let port = master.port();
        let mut started =
            Self { servers: [master, replica], watchers: Vec::new(), brokers: BrokerSet::from_env() };
        until("the replica follows", DEADLINE, || {
            Ok(started.servers[1].cli(&["INFO", "replication"])?.contains("master_link_status:up"))
        })?;
        for _ in 0..3 {
            started.watchers.push(with_other_ports(|| sentinel(&started.brokers, port))?);
        }
        until("the sentinels know each other and the replica", DEADLINE, || {
            let mut known = true;
            for sentinel in &started.watchers {
                let told = started.ask(sentinel, &["SENTINEL", "MASTER", MASTER])?;
                let fields: Vec<&str> = told.lines().collect();
                let is = |name: &str, value: &str| fields.windows(2).any(|pair| pair == [name, value]);
                known &= is("num-other-sentinels", "2") && is("num-slaves", "1") && is("flags", "master");
            }
            Ok(known)
        })?;
        Ok(started)
    }

    /// The address for a client, with the sentinels and the name of the master.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", self.hosts())
    }

    /// `host:port` of each sentinel, with commas between.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> =
            self.watchers.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        hosts.join(",")
    }

    /// The server that says of itself that it is the master.
    pub fn master(&self) -> Result<&Redis, TestbedError> {
        let is_master = |server: &&Redis| server.cli(&["ROLE"]).is_ok_and(|role| role.starts_with("master"));
        self.servers.iter().find(is_master).ok_or_else(|| {
            TestbedError::new(TestbedErrorKind::Refused, "neither server is a master".to_owned())
        })
    }

    /// Has the sentinels make the replica the master, while the old one lives and becomes its replica.
    pub fn fail_over(&self) -> Result<(), TestbedError> {
        let first = self
            .watchers
            .first()
            .ok_or_else(|| TestbedError::new(TestbedErrorKind::Missing, "there is no sentinel".to_owned()))?;
        self.ask(first, &["SENTINEL", "FAILOVER", MASTER]).map(drop)
    }

    /// From now on the sentinels answer this user only.
    pub fn demand(&self, user: &str, password: &str) -> Result<(), TestbedError> {
        for sentinel in &self.watchers {
            self.ask(sentinel, &["ACL", "SETUSER", user, "on", &format!(">{password}"), "+@all"])?;
            self.ask(sentinel, &["ACL", "SETUSER", "default", "off"])?;
        }
        Ok(())
    }

    /// Ends one of the sentinels.
    pub fn kill_first_sentinel(&self) -> Result<(), TestbedError> {
        self.watchers.first().map_or(Ok(()), Server::kill9)
    }

    fn ask(&self, sentinel: &Server, arguments: &[&str]) -> Result<String, TestbedError> {
        let mut command = Command::new(self.brokers.find("redis-cli")?);
        command
            .current_dir(sentinel.folder())
            .args(["-e", "-p", &sentinel.port().to_string()])
            .args(arguments);
        run_command(&mut command)
    }
}

fn sentinel(brokers: &BrokerSet, master: u16) -> Result<Server, TestbedError> {
    let program = brokers.find(RedisServer::from_env().program())?;
    let [port] = ports::free()?;
    let server = Server::prepare("Sentinel", brokers, port, Duration::from_secs(30))?;
    let (path, folder) = (server.folder().join("sentinel.conf"), server.folder().display());
    // a machine that is busy for a moment must not look like a dead master
    let settings = format!(
        "port {port}\nbind 127.0.0.1\ndir {folder}\nset-proc-title no\n\
         sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} 3000\n\
         sentinel failover-timeout {MASTER} 10000\n"
    );
    fs::write(&path, settings)
        .map_err(|source| TestbedError::io(format!("writing {}", path.display()), source))?;
    let mut command = Command::new(program);
    command.current_dir(server.folder()).arg(&path).arg("--sentinel");
    server.run(command, probe)?;
    Ok(server)
}
