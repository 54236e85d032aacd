//! Where the server is: at one address, or wherever the sentinels say that the master is now.
//!
//! Reads URLs and opens single connections; keeps none.

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
    /// Credentials, database, protocol and TLS; the host too, unless sentinels know it.
    server: ConnectionInfo,
    sentinels: Option<Sentinels>,
}

#[derive(Clone)]
struct Sentinels {
    nodes: Vec<ConnectionInfo>,
    master: String,
}

/// Host and port, as a sentinel tells them.
type Place = (String, u16);

impl Address {
    /// Checks the URL; opens nothing.
    pub(crate) fn of(options: &Options) -> Result<Self, ConnectError> {
        let (scheme, rest) = options.url.split_once("://").unwrap_or((options.url.as_str(), ""));
        let (plain, by_sentinel) =
            scheme.strip_suffix("+sentinel").map_or((scheme, false), |plain| (plain, true));
        match plain {
            "redis" | "valkey" => {}
            "rediss" | "valkeys" if cfg!(feature = "tls") => install_crypto(),
            "rediss" | "valkeys" => {
                return Err(invalid(format!(
                    "connect by `{scheme}://`: this program was built without TLS; turn on the feature `tls` of \
                     steadfast, or go without it by `{}`",
                    if by_sentinel { "redis+sentinel://" } else { "redis://" }
                )));
            }
            _ => {
                return Err(invalid(
                    "connect to Redis: the URL must begin with redis://, rediss://, redis+sentinel:// or \
                     rediss+sentinel://",
                ));
            }
        }
        if by_sentinel {
            return Self::by_sentinels(plain, rest, options);
        }
        Ok(Self { server: parse(&options.url, options)?, sentinels: None })
    }

    /// `[user[:password]@]host[:port],…/master[/database][?…]`: all but the hosts is the server's, not the sentinels'.
    fn by_sentinels(scheme: &str, rest: &str, options: &Options) -> Result<Self, ConnectError> {
        let (path, query) =
            rest.split_once('?').map_or((rest, String::new()), |(path, query)| (path, format!("?{query}")));
        let (authority, path) = path.split_once('/').unwrap_or((path, ""));
        let (master, database) = path.split_once('/').unwrap_or((path, ""));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        if master.is_empty() {
            return Err(invalid(
                "connect to Redis by sentinels: the URL names no master; write it behind the hosts, as in \
                 redis+sentinel://host1,host2/mymaster",
            ));
        }
        let server = parse(&format!("{scheme}://{user}localhost/{database}{query}"), options)?;
        let node = |host: &str| {
            let port = if has_port(host) { String::new() } else { format!(":{SENTINEL_PORT}") };
            parse(&format!("{scheme}://{host}{port}"), options)
        };
        let nodes = hosts.split(',').map(node).collect::<Result<_, _>>()?;
        Ok(Self { server, sentinels: Some(Sentinels { nodes, master: master.to_owned() }) })
    }

    /// Opens a connection, with sentinels to a server that says that it is the master. Takes `limit` at most.
    pub(crate) async fn open(
        &self,
        response_timeout: Duration,
        limit: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        match &self.sentinels {
            None => connect(self.server.clone(), response_timeout, limit).await,
            Some(sentinels) => {
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
            let info = self.server.clone().set_addr(moved(self.server.addr(), &place));
            match connect_to_master(info, response_timeout, step).await {
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
        let place: Option<Place> = ask.query_async(&mut connection).await?;
        place.ok_or_else(|| {
            let detail = format!("the sentinel at {} knows no master `{}`", node.addr(), self.master);
            RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "unknown master", detail))
        })
    }
}

/// What may be shown to anyone.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.server.redis_settings().db();
        let Some(sentinels) = &self.sentinels else {
            return write!(f, "{}/{database}", self.server.addr());
        };
        let nodes: Vec<String> = sentinels.nodes.iter().map(|node| node.addr().to_string()).collect();
        write!(f, "{}/{}/{database} (by sentinels)", nodes.join(","), sentinels.master)
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

/// The same kind of address elsewhere.
fn moved(from: &ConnectionAddr, (host, port): &Place) -> ConnectionAddr {
    match from {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.clone(),
            port: *port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        // not ours, and a sentinel names nothing but host and port
        _ => ConnectionAddr::Tcp(host.clone(), *port),
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

fn invalid(what: impl Into<String>) -> ConnectError {
    ConnectError::new(ConnectErrorKind::InvalidUrl, what.into())
}

fn io_error(kind: io::ErrorKind, what: &'static str) -> RedisError {
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
        let sentinels = address.sentinels.expect("by sentinels");
        for node in &sentinels.nodes {
            assert_eq!((node.redis_settings().password(), node.redis_settings().db()), (None, 0));
        }
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused_without_its_password() {
        for (url, hint) in [
            ("redis+sentinel://u:hunter2@one,two", "names no master"),
            ("redis+sentinel://u:hunter2@one,two/?protocol=resp3", "names no master"),
            ("redis+sentinel://u:hunter2@one,,two/m", "not valid"),
            ("redis+sentinel://u:hunter2@one/m/x", "not valid"),
            ("http+sentinel://u:hunter2@one/m", "redis+sentinel://"),
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
        let place = ("cache.example".to_owned(), 7);
        let moved = moved(address.server.addr(), &place);
        assert!(
            matches!(&moved, ConnectionAddr::TcpTls { host, port: 7, .. } if *host == place.0),
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
