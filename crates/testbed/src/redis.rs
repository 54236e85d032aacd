//! A private Redis, or a server that speaks its protocol.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::brokers::{BrokerSet, RedisServer};
use crate::certificates::{Certificates, ClientCertificates};
use crate::error::TestbedError;
use crate::ports;
use crate::server::{Server, run_command, with_other_ports};

/// How a private Redis is started.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisOptions {
    brokers: BrokerSet,
    server: RedisServer,
    append: Append,
    arguments: Vec<String>,
    tls: Option<ClientCertificates>,
    deadline: Duration,
}

/// What of the data survives the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Append {
    /// Nothing: the quickest, for tests that do not restart the server.
    #[default]
    Off,
    /// The append-only file, synced once a second: what most people run.
    EverySecond,
    /// The append-only file, synced at every command.
    Always,
}

impl RedisOptions {
    /// The brokers that the environment names, nothing kept on disk, half a minute to start.
    pub fn new() -> Self {
        Self {
            brokers: BrokerSet::from_env(),
            server: RedisServer::from_env(),
            append: Append::Off,
            arguments: Vec::new(),
            tls: None,
            deadline: Duration::from_secs(30),
        }
    }

    /// Takes the programs from `brokers`.
    pub fn brokers(mut self, brokers: BrokerSet) -> Self {
        self.brokers = brokers;
        self
    }

    /// Which server to run.
    pub fn server(mut self, server: RedisServer) -> Self {
        self.server = server;
        self
    }

    /// What of the data survives the process.
    pub fn append(mut self, append: Append) -> Self {
        self.append = append;
        self
    }

    /// Adds an argument of the command line, for example `--maxmemory`, then `50mb`.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Listens with TLS on a port of its own, beside the plain one: [`Redis::tls_url`] and [`Redis::certificates`].
    pub fn tls(mut self, client: ClientCertificates) -> Self {
        self.tls = Some(client);
        self
    }

    /// How long the server may take to start.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A running Redis that nobody else knows; it ends, and its folder goes, when this is dropped or the process ends.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    version: String,
    tls: Option<(u16, Certificates)>,
    server: Server,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub fn start(options: &RedisOptions) -> Result<Self, TestbedError> {
        with_other_ports(|| Self::start_once(options))
    }

    /// The address for a client.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port())
    }

    /// The address for a client that speaks TLS, where [`RedisOptions::tls`] asked for it.
    pub fn tls_url(&self) -> Option<String> {
        self.tls.as_ref().map(|(port, _)| format!("rediss://127.0.0.1:{port}/"))
    }

    /// The certificates behind [`Redis::tls_url`], which go with the folder.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.tls.as_ref().map(|(_, certificates)| certificates)
    }

    /// The port on 127.0.0.1, the same after a restart.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The process id of the server, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// All processes that belong to this broker, such as one that rewrites the append-only file.
    pub fn processes(&self) -> Vec<u32> {
        self.server.processes()
    }

    /// The folder with its data and logs, which goes with it.
    pub fn folder(&self) -> &Path {
        self.server.folder()
    }

    /// The version by the server's own word, for example `7.0.15`; that of Valkey for a Valkey.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ends the server with SIGKILL and waits until it is gone; what it kept on disk stays for [`Redis::restart`].
    pub fn kill9(&self) -> Result<(), TestbedError> {
        self.server.kill9()
    }

    /// Stops the server in good order and waits until it is gone; what it kept on disk stays for [`Redis::restart`].
    pub fn stop(&self) -> Result<(), TestbedError> {
        self.server.stop()
    }

    /// Starts the server again on the same port with the same data, after stopping it if it still runs.
    pub fn restart(&self) -> Result<(), TestbedError> {
        self.server.stop()?;
        self.server.run(self.command()?, probe).map(|_| ())
    }

    /// Halts the server with SIGSTOP: its connections stay open and nothing answers.
    pub fn pause(&self) -> Result<(), TestbedError> {
        self.server.signal("STOP")
    }

    /// Lets a paused server go on.
    pub fn resume(&self) -> Result<(), TestbedError> {
        self.server.signal("CONT")
    }

    /// Runs `redis-cli` against this server and returns what it wrote. An error reply is an error here.
    pub fn cli(&self, arguments: &[&str]) -> Result<String, TestbedError> {
        let mut command = Command::new(self.options.brokers.find("redis-cli")?);
        // -e: an error reply otherwise ends with success.
        command.current_dir(self.folder()).args(["-e", "-p", &self.port().to_string()]).args(arguments);
        run_command(&mut command)
    }

    fn start_once(options: &RedisOptions) -> Result<Self, TestbedError> {
        options.brokers.find(options.server.program())?;
        let [port, tls_port] = ports::free()?;
        let server = Server::prepare(options.server.name(), &options.brokers, port, options.deadline)?;
        let certificates = options.tls.map(|_| Certificates::make(server.folder())).transpose()?;
        let tls = certificates.map(|certificates| (tls_port, certificates));
        let mut redis = Self { options: options.clone(), version: String::new(), tls, server };
        redis.version = redis.server.run(redis.command()?, probe)?;
        Ok(redis)
    }

    fn command(&self) -> Result<Command, TestbedError> {
        let mut command = Command::new(self.options.brokers.find(self.options.server.program())?);
        command
            .current_dir(self.folder())
            // A title would be written over the environment, by which the guard knows its own.
            .args(["--set-proc-title", "no"])
            .args(["--bind", "127.0.0.1", "--port", &self.port().to_string(), "--save", "", "--dir"])
            .arg(self.folder())
            .args(self.options.append.arguments())
            .args(&self.options.arguments);
        if let (Some(client), Some((port, files))) = (self.options.tls, &self.tls) {
            command
                .args([
                    "--tls-port",
                    &port.to_string(),
                    "--tls-auth-clients",
                    client.word(),
                    "--tls-cert-file",
                ])
                .arg(files.path("server.pem"))
                .arg("--tls-key-file")
                .arg(files.path("server.key"))
                .arg("--tls-ca-cert-file")
                .arg(files.path("ca.pem"));
        }
        Ok(command)
    }
}

impl Append {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Off => &["--appendonly", "no"],
            Self::EverySecond => &["--appendonly", "yes", "--appendfsync", "everysec"],
            Self::Always => &["--appendonly", "yes", "--appendfsync", "always"],
        }
    }
}

/// Says PING, which answers with an error while data are loaded, then asks for the version.
pub(crate) fn probe(stream: TcpStream) -> io::Result<Option<String>> {
    let mut reader = BufReader::new(stream);
    reader.get_mut().write_all(b"PING\r\n")?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.trim_end() != "+PONG" {
        return Ok(None);
    }
    reader.get_mut().write_all(b"INFO server\r\n")?;
    line.clear();
    reader.read_line(&mut line)?;
    let size: u64 = line.trim_end().trim_start_matches('$').parse().map_err(io::Error::other)?;
    let mut info = String::new();
    reader.take(size).read_to_string(&mut info)?;
    Ok(Some(version_in(&info).unwrap_or("unknown").to_owned()))
}

/// Valkey states the version of Redis that it is like as well, so its own comes first.
fn version_in(info: &str) -> Option<&str> {
    let value = |key: &str| info.lines().find_map(|line| line.strip_prefix(key));
    value("valkey_version:").or_else(|| value("redis_version:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_valkey_is_its_own() {
        assert_eq!(version_in("# Server\r\nredis_version:7.0.15\r\n"), Some("7.0.15"));
        assert_eq!(
            version_in("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.0\r\n"),
            Some("9.1.0")
        );
        assert_eq!(version_in("# Server\r\n"), None);
    }
}
