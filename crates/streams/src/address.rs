//! Where the server is: at one address, wherever the sentinels say that the master is now, or on the nodes of a cluster.
//!
//! Reads URLs and opens single connections; keeps none.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    Value, cmd,
};
use steadfast_core::{ConnectError, ConnectErrorKind};

use crate::error::{Trouble, trouble};
use crate::options::Options;

/// The port of a sentinel whose URL names none.
const SENTINEL_PORT: u16 = 26379;

/// What a URL names.
#[derive(Clone)]
pub(crate) struct Address {
    /// Credentials, database, protocol and TLS; the host too, where there is only one.
    server: ConnectionInfo,
    hosts: Hosts,
}

#[derive(Clone)]
enum Hosts {
    One,
    Sentinels(Sentinels),
    /// Some nodes of a cluster; they know the others.
    Cluster(Vec<Place>),
}

#[derive(Clone)]
struct Sentinels {
    nodes: Vec<ConnectionInfo>,
    master: String,
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

impl Address {
    /// Checks the URL; opens nothing.
    pub(crate) fn of(options: &Options) -> Result<Self, ConnectError> {
        let (scheme, rest) = options.url.split_once("://").unwrap_or((options.url.as_str(), ""));
        let (plain, way) = scheme.split_once('+').unwrap_or((scheme, ""));
        match plain {
            "redis" | "valkey" => {}
            "rediss" | "valkeys" if cfg!(feature = "tls") => install_crypto(),
            "rediss" | "valkeys" => {
                let (without, way) = (&plain[..plain.len() - 1], &scheme[plain.len()..]);
                return Err(invalid(format!(
                    "connect by `{scheme}://`: this program was built without TLS; turn on the feature `tls` of \
                     steadfast, or go without it by `{without}{way}://`"
                )));
            }
            _ => return Err(unknown_scheme()),
        }
        match way {
            "" => Ok(Self { server: parse(&options.url, options)?, hosts: Hosts::One }),
            "sentinel" => Self::by_sentinels(plain, rest, options),
            "cluster" => Self::of_cluster(plain, rest, options),
            _ => Err(unknown_scheme()),
        }
    }

    /// `[user[:password]@]host[:port],…/master[/database][?…]`: all is the server's, not the sentinels', but the hosts and what
    /// the query says of them.
    fn by_sentinels(scheme: &str, rest: &str, options: &Options) -> Result<Self, ConnectError> {
        let Parts { user, hosts, path, query } = Parts::of(rest);
        let (query, theirs) = sentinels_user(query)?;
        let (master, database) = path.split_once('/').unwrap_or((path, ""));
        if master.is_empty() {
            return Err(invalid(
                "connect to Redis by sentinels: the URL names no master; write it behind the hosts, as in \
                 redis+sentinel://host1,host2/mymaster",
            ));
        }
        let server = parse(&format!("{scheme}://{user}localhost/{database}{query}"), options)?;
        let node = |host: &str| {
            let port = if has_port(host) { String::new() } else { format!(":{SENTINEL_PORT}") };
            parse(&format!("{scheme}://{theirs}{host}{port}"), options)
        };
        let nodes = hosts.split(',').map(node).collect::<Result<_, _>>()?;
        Ok(Self { server, hosts: Hosts::Sentinels(Sentinels { nodes, master: master.to_owned() }) })
    }

    /// `[user[:password]@]host[:port],…[/0][?…]`
    fn of_cluster(scheme: &str, rest: &str, options: &Options) -> Result<Self, ConnectError> {
        let Parts { user, hosts, path, query } = Parts::of(rest);
        if !matches!(path, "" | "0") {
            return Err(invalid(
                "connect to a Redis cluster: behind the hosts stands a database or more, and a cluster has only database 0; \
                 write redis+cluster://host1,host2",
            ));
        }
        let server = parse(&format!("{scheme}://{user}localhost/{query}"), options)?;
        let node = |host: &str| {
            let node = parse(&format!("{scheme}://{host}"), options)?;
            match node.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    Ok(Place { host: host.as_str().into(), port: *port })
                }
                _ => Err(invalid("connect to a Redis cluster: a node is named by host and port")),
            }
        };
        let nodes = hosts.split(',').map(node).collect::<Result<_, _>>()?;
        Ok(Self { server, hosts: Hosts::Cluster(nodes) })
    }

    /// The nodes of a cluster that the URL names; none where it names no cluster.
    pub(crate) fn nodes(&self) -> Option<&[Place]> {
        match &self.hosts {
            Hosts::Cluster(nodes) => Some(nodes),
            Hosts::One | Hosts::Sentinels(_) => None,
        }
    }

    /// Opens a connection to this node. Takes `limit` at most.
    pub(crate) async fn open_at(
        &self,
        place: &Place,
        response_timeout: Duration,
        limit: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        connect(self.at(place), response_timeout, limit).await
    }

    fn at(&self, place: &Place) -> ConnectionInfo {
        self.server.clone().set_addr(moved(self.server.addr(), place))
    }

    /// Opens a connection, with sentinels to a server that says that it is the master. Takes `limit` at most.
    pub(crate) async fn open(
        &self,
        response_timeout: Duration,
        limit: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        match &self.hosts {
            Hosts::One => connect(self.server.clone(), response_timeout, limit).await,
            Hosts::Cluster(_) => Err(io_error(io::ErrorKind::Unsupported, "a cluster is no single server")),
            Hosts::Sentinels(sentinels) => {
                tokio::time::timeout(limit, self.open_master(sentinels, response_timeout, limit))
                    .await
                    .unwrap_or_else(|_| {
                        Err(io_error(io::ErrorKind::TimedOut, "no sentinel led to a master in time"))
                    })
            }
        }
    }

    /// Asks all sentinels at once and tries each master that any of them names: one that is dead costs nothing, and one
    /// that was cut off from the others does not decide.
    async fn open_master(
        &self,
        sentinels: &Sentinels,
        response_timeout: Duration,
        limit: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        // an address that swallows everything must leave time for the next
        let step = limit / 2;
        let mut answers: FuturesUnordered<_> =
            sentinels.nodes.iter().map(|node| sentinels.ask(node, step)).collect();
        let (mut tried, mut failure): (Vec<Place>, _) = (Vec::new(), None);
        while let Some(answer) = answers.next().await {
            let place = match answer {
                Ok(place) => place,
                // what was said tells more than that nobody is there
                Err(error) => {
                    if failure.is_none() || !matches!(trouble(&error), Trouble::Cut | Trouble::Silent) {
                        failure = Some(error);
                    }
                    continue;
                }
            };
            if tried.contains(&place) {
                continue;
            }
            match connect_to_master(self.at(&place), response_timeout, step).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = Some(error),
            }
            tried.push(place);
        }
        Err(failure.unwrap_or_else(|| io_error(io::ErrorKind::NotConnected, "there is no sentinel to ask")))
    }
}

impl Sentinels {
    /// Where this one thinks that the master is.
    async fn ask(&self, node: &ConnectionInfo, limit: Duration) -> Result<Place, RedisError> {
        let mut connection = connect(node.clone(), limit, limit).await?;
        let mut ask = cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let place: Option<(String, u16)> = ask.query_async(&mut connection).await?;
        place.map(|(host, port)| Place { host: host.into(), port }).ok_or_else(|| {
            let detail = format!("the sentinel at {} knows no master `{}`", node.addr(), self.master);
            RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "unknown master", detail))
        })
    }
}

/// What may be shown to anyone.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.server.redis_settings().db();
        match &self.hosts {
            Hosts::One => write!(f, "{}/{database}", self.server.addr()),
            Hosts::Sentinels(Sentinels { nodes, master }) => {
                let nodes: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
                write!(f, "{}/{master}/{database} (by sentinels)", nodes.join(","))
            }
            Hosts::Cluster(nodes) => {
                let nodes: Vec<String> = nodes.iter().map(Place::to_string).collect();
                write!(f, "{} (a cluster)", nodes.join(","))
            }
        }
    }
}

async fn connect(
    info: ConnectionInfo,
    response_timeout: Duration,
    limit: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limit))
        .set_response_timeout(Some(response_timeout))
        .set_pipeline_buffer_size(1024);
    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

/// A sentinel may be behind the times, and a server that was the master may have been told otherwise.
async fn connect_to_master(
    info: ConnectionInfo,
    response_timeout: Duration,
    limit: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = connect(info, response_timeout, limit).await?;
    let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(connection),
        Some(_) | None => Err(io_error(
            io::ErrorKind::NotConnected,
            "the sentinels still name a server that is a replica by now",
        )),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What stands behind the scheme of a URL that names several hosts.
struct Parts<'a> {
    /// With the `@` behind it.
    user: &'a str,
    hosts: &'a str,
    path: &'a str,
    /// With the `?` before it.
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (path, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let (authority, path) = path.split_once('/').unwrap_or((path, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        Self { user, hosts, path, query }
    }
}

/// Takes `sentinel_user` and `sentinel_password` out of a query: what is left of it, and both as a URL has them before a host.
fn sentinels_user(query: &str) -> Result<(String, String), ConnectError> {
    let (mut user, mut password, mut rest) = ("", None, String::new());
    for part in query.trim_start_matches('?').split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("sentinel_user", value)) => user = value,
            Some(("sentinel_password", value)) => password = Some(value),
            _ => {
                rest.push(if rest.is_empty() { '?' } else { '&' });
                rest.push_str(part);
            }
        }
    }
    let odd = |value: &str| value.contains(['@', '/', ':', '?', '#', '[', ']']);
    match password {
        Some(password) if odd(user) || odd(password) => Err(invalid(
            "connect to Redis by sentinels: sentinel_user and sentinel_password are percent-encoded, so that `@` is %40",
        )),
        Some(password) => Ok((rest, format!("{user}:{password}@"))),
        None if user.is_empty() => Ok((rest, String::new())),
        None => Err(invalid(
            "connect to Redis by sentinels: the URL has a sentinel_user and no sentinel_password; add it, as in \
             redis+sentinel://host1,host2/mymaster?sentinel_user=app&sentinel_password=…",
        )),
    }
}

/// The same kind of address elsewhere.
fn moved(from: &ConnectionAddr, Place { host, port }: &Place) -> ConnectionAddr {
    match from {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.to_string(),
            port: *port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        // not ours, and nobody names anything but host and port
        _ => ConnectionAddr::Tcp(host.to_string(), *port),
    }
}

fn parse(url: &str, options: &Options) -> Result<ConnectionInfo, ConnectError> {
    let what = "connect to Redis: the URL is not valid";
    // the URL itself is never shown: it may carry a password
    let info = url.into_connection_info().map_err(|error| invalid(what).with_source(error))?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let info = info.set_tcp_settings(tcp);
    #[cfg(feature = "tls")]
    let info = certified(info, options)?;
    #[cfg(not(feature = "tls"))]
    let _ = options;
    Ok(info)
}

/// With the certificates that the options name.
#[cfg(feature = "tls")]
fn certified(info: ConnectionInfo, options: &Options) -> Result<ConnectionInfo, ConnectError> {
    if let Some(certificates) = options.certificates() {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Err(invalid(
                "connect to Redis: certificates are given, but the URL is not for TLS; begin it with rediss:// or \
                 rediss+sentinel://",
            ));
        }
        let what = "connect to Redis: a certificate or key is not valid PEM";
        let begins = |pem: &[u8]| pem.windows(27).any(|part| part == b"-----BEGIN CERTIFICATE-----");
        let chain = certificates.client_tls.as_ref().map(|client| &client.client_cert);
        // text without any certificate would be taken for a list of none
        if ![certificates.root_cert.as_ref(), chain].into_iter().flatten().all(|pem| begins(pem)) {
            return Err(invalid(what));
        }
        let client =
            Client::build_with_tls(info, certificates).map_err(|error| invalid(what).with_source(error))?;
        return Ok(client.get_connection_info().clone());
    }
    Ok(info)
}

fn has_port(host: &str) -> bool {
    // the colons of an IPv6 address stand in brackets
    host.rsplit_once(']').map_or(host, |(_, after)| after).contains(':')
}

fn unknown_scheme() -> ConnectError {
    invalid(
        "connect to Redis: the URL must begin with redis:// or rediss://, or with redis+sentinel://, rediss+sentinel://, \
         redis+cluster:// or rediss+cluster://",
    )
}

fn invalid(what: impl Into<String>) -> ConnectError {
    ConnectError::new(ConnectErrorKind::InvalidUrl, what.into())
}

pub(crate) fn io_error(kind: io::ErrorKind, what: &'static str) -> RedisError {
    io::Error::new(kind, what).into()
}

/// rustls wants to be told which of the compiled-in providers to use; another's choice stands.
fn install_crypto() {
    #[cfg(feature = "tls")]
    {
        _ = rustls::crypto::ring::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Result<Address, ConnectError> {
        Address::of(&Options::new(url))
    }

    #[test]
    fn sentinels_are_told_from_the_server_they_know() {
        let address =
            of("redis+sentinel://app:s3%40cret@one,two:7000,[::1]/orders/3?protocol=resp3").expect("valid");
        assert_eq!(address.to_string(), "one:26379,two:7000,::1:26379/orders/3 (by sentinels)");
        let settings = address.server.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("app"), Some("s3@cret")));
        let Hosts::Sentinels(sentinels) = address.hosts else { panic!("by sentinels") };
        for node in &sentinels.nodes {
            assert_eq!((node.redis_settings().password(), node.redis_settings().db()), (None, 0));
        }
    }

    #[test]
    fn sentinels_have_a_user_of_their_own() {
        let url =
            "redis+sentinel://app:one@a,b/orders?sentinel_user=watch&protocol=resp3&sentinel_password=two%40";
        let address = of(url).expect("valid");
        let settings = address.server.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("app"), Some("one")));
        assert_eq!(settings.protocol(), redis::ProtocolVersion::RESP3);
        let Hosts::Sentinels(sentinels) = address.hosts else { panic!("by sentinels") };
        for node in &sentinels.nodes {
            let settings = node.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("watch"), Some("two@")));
        }
        let Hosts::Sentinels(sentinels) =
            of("redis+sentinel://a/m?sentinel_password=x").expect("valid").hosts
        else {
            panic!("by sentinels")
        };
        let settings = sentinels.nodes[0].redis_settings();
        assert_eq!((settings.username(), settings.password()), (None, Some("x")));
    }

    #[test]
    fn a_cluster_is_met_at_any_of_its_nodes() {
        let address = of("redis+cluster://app:s3%40cret@one,two:7000,[::1]?protocol=resp3").expect("valid");
        assert_eq!(address.to_string(), "one:6379,two:7000,::1:6379 (a cluster)");
        let nodes = address.nodes().expect("a cluster");
        assert_eq!(nodes.len(), 3);
        let node = address.at(&nodes[1]);
        assert_eq!(node.addr(), &ConnectionAddr::Tcp("two".into(), 7000));
        let settings = node.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("app"), Some("s3@cret")));
        assert!(of("redis+cluster://one/0").is_ok() && of("redis://one").expect("valid").nodes().is_none());
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused_without_its_password() {
        for (url, hint) in [
            ("redis+sentinel://u:hunter2@one,two", "names no master"),
            ("redis+sentinel://u:hunter2@one,two/?protocol=resp3", "names no master"),
            ("redis+sentinel://u:hunter2@one,,two/m", "not valid"),
            ("redis+sentinel://u:hunter2@one/m/x", "not valid"),
            ("http+sentinel://u:hunter2@one/m", "redis+sentinel://"),
            ("redis+sentinel://one/m?sentinel_user=x", "no sentinel_password"),
            ("redis+sentinel://one/m?sentinel_password=hunter2@x", "percent-encoded"),
            ("redis+ring://u:hunter2@one", "redis+cluster://"),
            ("redis+cluster://u:hunter2@one,,two", "not valid"),
            ("redis+cluster://u:hunter2@one:70000", "not valid"),
            ("redis+cluster://u:hunter2@one/3", "only database 0"),
            ("hunter2", "redis://"),
        ] {
            let error = of(url).map(drop).expect_err(url);
            assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn the_master_that_a_sentinel_names_is_met_by_tls_too() {
        let address = of("rediss+sentinel://one/m").expect("valid");
        let place = Place { host: "cache.example".into(), port: 7 };
        let moved = moved(address.server.addr(), &place);
        assert!(
            matches!(&moved, ConnectionAddr::TcpTls { host, port: 7, .. } if **host == *place.host),
            "{moved:?}"
        );
    }

    #[cfg(feature = "tls")]
    #[test]
    fn certificates_need_tls_and_must_be_pem() {
        let plain = Options::new("redis://one").certificate_authority("x");
        assert!(Address::of(&plain).map(drop).expect_err("no TLS").to_string().contains("rediss://"));
        let hostile = Options::new("rediss://one").client_certificate("hunter2", "hunter2");
        let error = Address::of(&hostile).map(drop).expect_err("no PEM");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        let empty = Options::new("rediss://one").certificate_authority("not PEM");
        assert!(Address::of(&empty).is_err());
    }
}
