//! A private `RabbitMQ`: one node with its own name, cookie, port mapper and folder.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::brokers::BrokerSet;
use crate::certificates::{Certificates, ClientCertificates};
use crate::error::TestbedError;
use crate::server::{Server, run_command, with_other_ports};
use crate::unique::unique;
use crate::{ports, unique::random};

/// How a private `RabbitMQ` is started.
#[derive(Debug, Clone)]
#[must_use]
pub struct RabbitOptions {
    brokers: BrokerSet,
    config: Vec<String>,
    tls: Option<ClientCertificates>,
    deadline: Duration,
}

impl RabbitOptions {
    /// The brokers that the environment names, nothing configured, a minute to start.
    pub fn new() -> Self {
        let (brokers, deadline) = (BrokerSet::from_env(), Duration::from_secs(60));
        Self { brokers, config: Vec::new(), tls: None, deadline }
    }

    /// Takes the programs from `brokers`.
    pub fn brokers(mut self, brokers: BrokerSet) -> Self {
        self.brokers = brokers;
        self
    }

    /// Adds a line to `rabbitmq.conf`, for example `consumer_timeout = 5000`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// Listens with TLS on a port of its own, beside the plain one: [`Rabbit::tls_url`] and [`Rabbit::certificates`].
    pub fn tls(mut self, client: ClientCertificates) -> Self {
        self.tls = Some(client);
        self
    }

    /// How long the node may take to start.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Default for RabbitOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A running `RabbitMQ` that nobody else knows; it ends, and its folder goes, when this is dropped or the process ends.
#[derive(Debug)]
pub struct Rabbit {
    options: RabbitOptions,
    node: Node,
    version: String,
    tls: Option<(u16, Certificates)>,
    server: Server,
}

/// What makes the node one of its own among others on the machine.
#[derive(Debug)]
struct Node {
    name: String,
    cookie: String,
    mapper_port: u16,
    distribution_port: u16,
}

impl Rabbit {
    /// Starts a node and waits until it answers.
    pub fn start(options: &RabbitOptions) -> Result<Self, TestbedError> {
        with_other_ports(|| Self::start_once(options))
    }

    /// The address for a client.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port())
    }

    /// The address for a client that speaks TLS, where [`RabbitOptions::tls`] asked for it.
    pub fn tls_url(&self) -> Option<String> {
        self.tls.as_ref().map(|(port, _)| format!("amqps://guest:guest@127.0.0.1:{port}/%2f"))
    }

    /// The certificates behind [`Rabbit::tls_url`], which go with the folder.
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

    /// All processes that belong to this broker, its port mapper too.
    pub fn processes(&self) -> Vec<u32> {
        self.server.processes()
    }

    /// The folder with its data and logs, which goes with it.
    pub fn folder(&self) -> &Path {
        self.server.folder()
    }

    /// The version by the server's own word, for example `3.10.8`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ends the server with SIGKILL and waits until it is gone; its data stay for [`Rabbit::restart`].
    pub fn kill9(&self) -> Result<(), TestbedError> {
        self.server.kill9()
    }

    /// Stops the server in good order and waits until it is gone; its data stay for [`Rabbit::restart`].
    pub fn stop(&self) -> Result<(), TestbedError> {
        self.server.stop()
    }

    /// Starts the server again on the same port with the same data, after stopping it if it still runs.
    pub fn restart(&self) -> Result<(), TestbedError> {
        self.server.stop()?;
        self.run().map(|_| ())
    }

    /// Halts the server with SIGSTOP: its connections stay open and nothing answers.
    pub fn pause(&self) -> Result<(), TestbedError> {
        self.server.signal("STOP")
    }

    /// Lets a paused server go on.
    pub fn resume(&self) -> Result<(), TestbedError> {
        self.server.signal("CONT")
    }

    /// Runs `rabbitmqctl` against this node and returns what it wrote.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, TestbedError> {
        let mut command = Command::new(self.options.brokers.find("rabbitmqctl")?);
        self.surroundings(&mut command);
        command
            .args(["--quiet", "--node", &self.node.name, "--erlang-cookie", &self.node.cookie])
            .args(arguments);
        run_command(&mut command)
    }

    fn start_once(options: &RabbitOptions) -> Result<Self, TestbedError> {
        options.brokers.find("rabbitmq-server")?;
        let [port, tls_port, mapper_port, distribution_port] = ports::free()?;
        let server = Server::prepare("RabbitMQ", &options.brokers, port, options.deadline)?;
        let node = Node {
            name: format!("{}@localhost", unique("steadfast")),
            cookie: format!("{:016x}", random()),
            mapper_port,
            distribution_port,
        };
        let certificates = options.tls.map(|_| Certificates::make(server.folder())).transpose()?;
        let tls = certificates.map(|certificates| (tls_port, certificates));
        let mut rabbit = Self { options: options.clone(), node, version: String::new(), tls, server };
        rabbit.write_config()?;
        rabbit.version = rabbit.run()?;
        Ok(rabbit)
    }

    /// Until it answers, by TLS too; returns its version.
    fn run(&self) -> Result<String, TestbedError> {
        let tls = self.tls.as_ref().map(|(port, _)| *port);
        self.server.run(self.command()?, |stream| {
            // this listener may come after the other one
            tls.map(|port| TcpStream::connect(("127.0.0.1", port))).transpose()?;
            probe(stream)
        })
    }

    fn write_config(&self) -> Result<(), TestbedError> {
        let listener = format!("listeners.tcp.local = 127.0.0.1:{}\n", self.port());
        let config = [self.options.config.clone(), self.tls_config()].concat().join("\n");
        let files = [
            ("rabbitmq.conf", listener + &config + "\n"),
            // No plugins: the management plugin alone would double the time to start.
            ("enabled_plugins", String::from("[].\n")),
            // In place of the machine's own file, which knows another node.
            ("rabbitmq-env.conf", String::new()),
        ];
        for (name, text) in files {
            let path = self.folder().join(name);
            std::fs::write(&path, text)
                .map_err(|source| TestbedError::io(format!("writing {}", path.display()), source))?;
        }
        Ok(())
    }

    fn tls_config(&self) -> Vec<String> {
        let (Some(client), Some((port, files))) = (self.options.tls, &self.tls) else { return Vec::new() };
        let file = |name: &str| files.path(name).display().to_string();
        let required = client == ClientCertificates::Required;
        vec![
            format!("listeners.ssl.local = 127.0.0.1:{port}"),
            format!("ssl_options.cacertfile = {}", file("ca.pem")),
            format!("ssl_options.certfile = {}", file("server.pem")),
            format!("ssl_options.keyfile = {}", file("server.key")),
            format!("ssl_options.verify = {}", if required { "verify_peer" } else { "verify_none" }),
            format!("ssl_options.fail_if_no_peer_cert = {required}"),
        ]
    }

    fn command(&self) -> Result<Command, TestbedError> {
        let folder = self.folder();
        let mut command = Command::new(self.options.brokers.find("rabbitmq-server")?);
        self.surroundings(&mut command);
        command
            // The script then becomes the server instead of waiting for it, so that our child is the server itself.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", folder.join("generated"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_NODENAME", &self.node.name)
            .env("RABBITMQ_DIST_PORT", self.node.distribution_port.to_string())
            // Schedulers bound to cores would sit on the same ones in every node.
            .env("RABBITMQ_SCHEDULER_BIND_TYPE", "u")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("+S 2:2 {}", self.erlang_arguments()));
        Ok(command)
    }

    /// What the server and `rabbitmqctl` must agree on.
    fn surroundings(&self, command: &mut Command) {
        let folder = self.folder();
        // Settings of a node that the caller's shell was meant for must not reach this one.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("RABBITMQ_") || name.starts_with("ERL_")) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(folder)
            .env("HOME", folder)
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("rabbitmq-env.conf"))
            .env("RABBITMQ_CTL_ERL_ARGS", self.erlang_arguments())
            // A port mapper of our own: the machine's would be on all interfaces, and would outlive us.
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.node.mapper_port.to_string());
    }

    /// The cookie is given here, too, because a server in a root of its own has another HOME.
    fn erlang_arguments(&self) -> String {
        format!("-setcookie {} -kernel inet_dist_use_interface {{127,0,0,1}}", self.node.cookie)
    }
}

/// Says the protocol header and takes the version from the `connection.start` that answers it. `RabbitMQ` opens its
/// listeners last, once its queues are recovered, so an answer means that it is ready.
fn probe(mut stream: TcpStream) -> io::Result<Option<String>> {
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut header = [0; 7];
    stream.read_exact(&mut header)?;
    let [kind, _, _, size @ ..] = header;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    // Another protocol's answer must not have us read without end.
    if kind != 1 || size > 65_536 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not an AMQP 0.9.1 method: {header:?}"),
        ));
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    Ok(Some(version_in(&payload).unwrap_or_else(|| String::from("unknown"))))
}

/// The long string under the key `version` in the server's properties.
fn version_in(payload: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let at = payload.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let (size, rest) = payload.get(at..)?.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
    Some(String::from_utf8_lossy(rest.get(..size)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_among_the_properties() {
        assert_eq!(
            version_in(b"..\x07productS\x00\x00\x00\x01x\x07versionS\x00\x00\x00\x063.10.8.."),
            Some("3.10.8".into())
        );
        assert_eq!(version_in(b"\x07versionS\x00\x00\x00\x063.1"), None);
        assert_eq!(version_in(b"nothing"), None);
    }
}
