//! [`Streams`]: the broker, and how to connect to it.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join, join_all};
use redis::cmd;
use steadfast_core::{
    Broker, Capabilities, ConnectError, ConnectErrorKind, Operator, Publisher, Source, Subscribe,
    SubscribeError, Subscription,
};

use crate::connection::{Line, Server};
use crate::error;
use crate::group::Group;
use crate::operate::StreamOperator;
use crate::options::Options;
use crate::partition::{Board, PartitionedGroup, PartitionedSubscription, Routes, count_behind};
use crate::publisher::StreamPublisher;
use crate::slot::Slot;
use crate::subscription::{StreamSubscription, shut_down};

/// Connects to a server, with the defaults of [`Options`].
///
/// Fails with `InvalidUrl` for a URL that makes no sense, needs the feature `tls`, or names a node of a cluster as if it were the
/// only server, with `Refused` where the server said
/// no (credentials, database index), and with `Unreachable` where none answered within 5 s. No error carries the URL.
///
/// ```no_run
/// # async fn example() -> Result<(), steadfast_core::ConnectError> {
/// use steadfast_core::Broker;
///
/// let broker = steadfast_streams::connect("redis://localhost").await?;
/// println!("{}", broker.capabilities().server);
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<Arc<Streams>, ConnectError> {
    connect_with(Options::new(url)).await
}

/// Connects to a server.
pub async fn connect_with(options: Options) -> Result<Arc<Streams>, ConnectError> {
    let streams = Streams::new(options)?;
    streams.greet().await?;
    Ok(Arc::new(streams))
}

/// Checks the URL and connects with the first call that needs a connection. Until then the server in
/// [`Capabilities`] has no version.
///
/// ```
/// let error = steadfast_streams::connect_lazy("http://localhost").unwrap_err();
/// assert!(error.to_string().contains("redis://"));
/// ```
pub fn connect_lazy(url: &str) -> Result<Arc<Streams>, ConnectError> {
    Streams::new(Options::new(url)).map(Arc::new)
}

/// A Redis or Valkey server, or a cluster of them.
///
/// Holds one connection for commands and one for publishing (to each node of a cluster); every subscription has one of its own for reading. All are
/// driven by a thread of their own. A lost one is opened again by the next call that needs it, except a subscription's.
pub struct Streams {
    server: Arc<Server>,
    commands: Arc<Line>,
    publishing: Arc<Line>,
    capabilities: OnceLock<Capabilities>,
    slots: Mutex<Vec<Weak<Slot>>>,
    boards: Mutex<Vec<Weak<Board>>>,
    routes: Arc<Routes>,
}

impl Streams {
    fn new(options: Options) -> Result<Self, ConnectError> {
        let server = Arc::new(Server::new(options)?);
        let (command, publish) = (server.options.command_timeout, server.options.publish_deadline);
        Ok(Self {
            commands: Arc::new(Line::new(Arc::clone(&server), command)),
            publishing: Arc::new(Line::new(Arc::clone(&server), publish)),
            server,
            capabilities: OnceLock::new(),
            slots: Mutex::default(),
            boards: Mutex::default(),
            routes: Arc::default(),
        })
    }

    /// Asks who is there.
    async fn greet(&self) -> Result<(), ConnectError> {
        let what = || format!("connect to Redis at {}", self.server.address);
        self.commands.check().await.map_err(|error| error::connect(&what(), error))?;
        match self.commands.ask::<String>(cmd("INFO").arg("server")).await {
            Ok(info) if is_node(&info) && self.server.nodes().is_none() => {
                let what = what()
                    + ": it is a node of a cluster, which has only some of the keys; connect by \
                    redis+cluster:// or rediss+cluster://";
                return Err(ConnectError::new(ConnectErrorKind::InvalidUrl, what));
            }
            Ok(info) => _ = self.capabilities.set(capabilities(&self.named(&product(&info)))),
            // not everybody may ask
            Err(error)
                if error::trouble(&error) == error::Trouble::Refused && error.code() == Some("NOPERM") =>
            {
                _ = self.capabilities.set(capabilities(&self.named("Redis (version not told)")));
            }
            Err(error) => return Err(error::connect(&what(), error)),
        }
        Ok(())
    }

    /// A server, or a cluster of them.
    fn named(&self, product: &str) -> String {
        match self.server.nodes() {
            Some(nodes) => format!("{product}, a cluster of {nodes} nodes"),
            None => product.to_owned(),
        }
    }

    /// Asks later, if nobody could be asked yet.
    async fn meet(&self) {
        if self.capabilities.get().is_none()
            && let Err(error) = self.greet().await
        {
            tracing::debug!(%error, "the server did not say what it is");
        }
    }

    /// The line for commands.
    pub(crate) fn commands(&self) -> &Line {
        &self.commands
    }

    /// The line for publishing.
    pub(crate) fn publishing(&self) -> &Line {
        &self.publishing
    }

    /// Which names are partitioned.
    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    fn boards(&self) -> Vec<Arc<Board>> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    fn remember_board(&self, board: &Arc<Board>) {
        let mut boards = self.boards.lock().unwrap_or_else(PoisonError::into_inner);
        boards.retain(|board| board.strong_count() > 0);
        boards.push(Arc::downgrade(board));
    }

    async fn declare_partitions(&self, group: &PartitionedGroup) -> Result<(), SubscribeError> {
        group.declare(&self.commands).await?;
        self.routes.learn(group.streams.name(), group.streams.partitions());
        Ok(())
    }

    fn slots(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    fn remember(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.strong_count() > 0);
        slots.push(Arc::downgrade(slot));
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("address", &self.server.address).finish_non_exhaustive()
    }
}

impl Broker for Streams {
    fn scheme(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.get().cloned().unwrap_or_else(|| capabilities("Redis (not connected yet)"))
    }

    fn declare<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>> {
        Box::pin(async move {
            match PartitionedGroup::of(source) {
                Some(group) => self.declare_partitions(&group).await,
                None => Group::of(source)?.declare(&self.commands).await,
            }
        })
    }

    fn subscribe(&self, request: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>> {
        Box::pin(async move {
            self.meet().await;
            if let Some(group) = PartitionedGroup::of(&request.source) {
                self.declare_partitions(&group).await?;
                let started =
                    PartitionedSubscription::start(&self.server, &self.commands, group, request).await?;
                self.remember_board(started.board());
                return Ok(Box::new(started) as Box<dyn Subscription>);
            }
            let started =
                StreamSubscription::start(&self.server, Arc::clone(&self.commands), request).await?;
            self.remember(started.slot());
            Ok(Box::new(started) as Box<dyn Subscription>)
        })
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>> {
        Box::pin(async move {
            let what = || format!("connect to Redis at {}", self.server.address);
            self.publishing.check().await.map_err(|error| error::connect(&what(), error))?;
            let (line, routes) = (Arc::clone(&self.publishing), Arc::clone(&self.routes));
            let publisher = StreamPublisher::new(line, routes, &self.server.options);
            Ok(Arc::new(publisher) as Arc<dyn Publisher>)
        })
    }

    /// The connection for commands, asked once a second by `PING`. Of a cluster it is lost when no node answers.
    fn connection(&self) -> BoxFuture<'_, Result<BoxFuture<'static, ConnectError>, ConnectError>> {
        Box::pin(async move {
            let what = format!("connect to Redis at {}", self.server.address);
            self.commands.check().await.map_err(|error| error::connect(&what, error))?;
            let line = Arc::clone(&self.commands);
            let lost = async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if let Err(error) = line.check().await {
                        return error::connect(&what, error);
                    }
                }
            };
            Ok(Box::pin(lost) as BoxFuture<'static, ConnectError>)
        })
    }

    /// The group's `lag`, as `XINFO GROUPS` answers it: entries that were not delivered to any of its consumers. Of a
    /// partitioned stream those partitions count that are owned here.
    fn backlog<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Option<u64>> {
        Box::pin(async move {
            let Some(group) = PartitionedGroup::of(source) else {
                return Group::of(source).ok()?.lag(&self.commands).await;
            };
            let mut boards = self.boards();
            boards.retain(|board| board.group == group);
            count_behind(&self.commands, &boards).await
        })
    }

    fn operator(&self) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(StreamOperator { line: Arc::clone(&self.commands) }))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (slots, boards) = (self.slots(), self.boards());
            let limit = self.server.options.command_timeout;
            join(
                join_all(slots.iter().map(|slot| shut_down(slot))),
                join_all(boards.iter().map(|board| board.shut_down(limit))),
            )
            .await;
            self.server.close();
            self.commands.close();
            self.publishing.close();
        })
    }
}

fn capabilities(server: &str) -> Capabilities {
    let mut can = Capabilities::new(server);
    can.groups = true;
    can.delivery_count = true;
    can.native_delay = false;
    can.fields = true;
    can.durable = true;
    can.typed_headers = false;
    can.groups = true;
    can.routable_check = false;
    can.delay_precision = Duration::from_millis(200);
    can
}

/// Whether a server with this `INFO server` is a node of a cluster.
fn is_node(info: &str) -> bool {
    info.lines()
        .any(|line| line.trim_end() == "redis_mode:cluster" || line.trim_end() == "server_mode:cluster")
}

/// Product and version, out of the text of `INFO server`.
fn product(info: &str) -> String {
    let value =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match (value("valkey_version"), value("redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, Some(version)) => format!("Redis {version}"),
        (None, None) => "Redis (version not told)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_product_and_version() {
        assert_eq!(product("# Server\r\nredis_version:7.0.15\r\n"), "Redis 7.0.15");
        let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        assert_eq!(product(valkey), "Valkey 9.1.2");
        assert!(
            !is_node("redis_mode:standalone\r\n") && is_node("x:1\r\nredis_mode:cluster\r\nos:Linux\r\n")
        );
    }

    #[test]
    fn no_password_is_shown() {
        let streams = connect_lazy("redis://user:hunter2@localhost:1/3").expect("valid");
        assert!(!format!("{streams:?}").contains("hunter2"), "{streams:?}");
        assert!(format!("{streams:?}").contains("localhost:1/3"), "{streams:?}");
        let error = connect_lazy("redis://user:hunter2@localhost:1/x").expect_err("no database x");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_the_feature_says_what_to_turn_on() {
        let error = connect_lazy("rediss://localhost").expect_err("no TLS");
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
