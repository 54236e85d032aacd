//! Connections: opening them on our own runtime, each to the server that has the key. A [`Line`] is shared by many callers, a
//! [`Link`] has one.
//!
//! Knows deadlines and redirections, and nothing of streams.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, Script, Value, cmd};
use steadfast_core::ConnectError;

use crate::address::{Address, Place, io_error};
use crate::cluster::{Cluster, Next};
use crate::names::Owners;
use crate::options::Options;
use crate::resume::Resume;
use crate::runtime;
use crate::wire::{Call, Failure, Wire, evaluate};

/// For commands without a key.
const NO_KEY: &str = "";

/// The server, or the cluster, that all connections of one [`Streams`](crate::Streams) go to.
pub(crate) struct Server {
    place: Address,
    /// `host:port/database`, the sentinels and the master's name, or nodes of a cluster, which may be shown to anyone.
    pub(crate) address: String,
    pub(crate) options: Options,
    pub(crate) resume: Resume,
    pub(crate) owners: Arc<Owners>,
    cluster: Option<Cluster>,
    closed: AtomicBool,
}

impl Server {
    /// Checks the URL; opens nothing.
    pub(crate) fn new(options: Options) -> Result<Self, ConnectError> {
        let place = Address::of(&options)?;
        Ok(Self {
            address: place.to_string(),
            cluster: place.nodes().map(|nodes| Cluster::new(place.clone(), nodes, options.connect_timeout)),
            place,
            options,
            resume: Resume::default(),
            owners: Arc::new(Owners::new()),
            closed: AtomicBool::new(false),
        })
    }

    /// Opens one more connection, to this node of a cluster or to the one server.
    pub(crate) async fn connect(
        &self,
        node: Option<&Place>,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        if self.is_closed() {
            let closed = io::Error::new(io::ErrorKind::NotConnected, "this broker was closed");
            return Err(closed.into());
        }
        let (place, node, limit) = (self.place.clone(), node.cloned(), self.options.connect_timeout);
        // the connection's driver is spawned where it is opened
        runtime::run(async move {
            match node {
                Some(node) => place.open_at(&node, response_timeout, limit).await,
                None => place.open(response_timeout, limit).await,
            }
        })
        .await?
    }

    /// Opens a connection for one user, to where this key is.
    pub(crate) async fn link(&self, key: &str, response_timeout: Duration) -> Result<Link, RedisError> {
        let Some(cluster) = &self.cluster else {
            let connection = self.connect(None, response_timeout).await?;
            return Ok(Link { connection, node: None, asking: false });
        };
        let (mut node, mut asking) = cluster.reader_node(key).await?;
        let mut opened = self.connect(Some(&node), response_timeout).await;
        if opened.is_err()
            && let Some(other) = cluster.instead_of(&node, key).await
        {
            (node, asking) = (other, false);
            opened = self.connect(Some(&node), response_timeout).await;
        }
        Ok(Link { connection: opened?, node: Some(node), asking })
    }

    /// Whether these keys can be in one command.
    pub(crate) fn are_together(&self, one: &str, other: &str) -> bool {
        self.cluster.is_none() || Cluster::are_together(one, other)
    }

    /// How many nodes a cluster has; none where this is one server.
    pub(crate) fn nodes(&self) -> Option<usize> {
        self.cluster.as_ref().map(Cluster::size)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Connections that many share: one, or one to each node of a cluster. Commands go to the node that has their key.
pub(crate) struct Line {
    server: Arc<Server>,
    response_timeout: Duration,
    /// Where there is no cluster.
    only: Wire,
    nodes: Mutex<HashMap<Place, Arc<Wire>>>,
}

impl Line {
    pub(crate) fn new(server: Arc<Server>, response_timeout: Duration) -> Self {
        let only = Wire::new(Arc::clone(&server), None, response_timeout);
        Self { server, response_timeout, only, nodes: Mutex::default() }
    }

    /// Whether the server answers, or any node of the cluster.
    pub(crate) async fn check(&self) -> Result<(), RedisError> {
        let Some(cluster) = &self.server.cluster else { return self.only.check().await };
        let wires: Vec<_> = cluster.nodes().await?.iter().map(|node| self.wire(node)).collect();
        if wires.is_empty() {
            return Err(io_error(io::ErrorKind::NotConnected, "the cluster has no nodes"));
        }
        select_ok(wires.iter().map(|wire| Box::pin(wire.check()))).await.map(|((), _)| ())
    }

    /// What is known of lost groups.
    pub(crate) fn resume(&self) -> &Resume {
        &self.server.resume
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Runs one command on the server that has this key.
    pub(crate) async fn query<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T, RedisError> {
        Ok(T::from_redis_value(self.run(key, command).await?)?)
    }

    /// Runs one command that has no key.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.query(NO_KEY, command).await
    }

    /// What an error on a [`Link`] with this key is. In a cluster the key may have gone to another node: that is the end of the
    /// link, and another leads to where the key is.
    pub(crate) async fn on_link(&self, key: &str, error: RedisError) -> RedisError {
        let Some(cluster) = &self.server.cluster else { return error };
        let went = || io_error(io::ErrorKind::ConnectionReset, "the key went to another node of the cluster");
        if cluster.learn(&error).is_some() {
            return went();
        }
        // a blocked reader hears that its key is no more, even if it is on another node
        if error.code() != Some("UNBLOCKED") {
            return error;
        }
        match self.query::<String>(key, cmd("TYPE").arg(key)).await {
            Ok(kind) if kind == "none" => error,
            Ok(_) => went(),
            Err(lost) => lost,
        }
    }

    /// Runs one command on this node of a cluster, or on the one server.
    pub(crate) async fn query_at<T: FromRedisValue>(
        &self,
        node: Option<&Place>,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        let call = Call { command, script: None };
        let answer = match node {
            Some(node) => self.wire(node).send(call, false).await,
            None => self.only.send(call, false).await,
        };
        Ok(T::from_redis_value(answer?)?)
    }

    /// Runs a script. Its keys are on one server.
    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[Vec<u8>],
    ) -> Result<T, RedisError> {
        Ok(T::from_redis_value(self.run_script(script, keys, arguments).await?)?)
    }

    /// The same, for those who need to know whether the server may have got it.
    pub(crate) async fn run_script(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[Vec<u8>],
    ) -> Result<Value, Failure> {
        let command = evaluate(script, keys, arguments);
        let key = keys.first().copied().unwrap_or(NO_KEY);
        self.send(key, Call { command: &command, script: Some(script) }).await
    }

    /// Runs one command, for those who need to know whether the server may have got it.
    pub(crate) async fn run(&self, key: &str, command: &Cmd) -> Result<Value, Failure> {
        self.send(key, Call { command, script: None }).await
    }

    async fn send(&self, key: &str, call: Call<'_>) -> Result<Value, Failure> {
        let Some(cluster) = &self.server.cluster else { return self.only.send(call, false).await };
        let mut course = cluster.course(key).await.map_err(Failure::unsent)?;
        loop {
            let sent = self.wire(&course.node).send(call, course.asking).await;
            let Err(failure) = sent else { return sent };
            match cluster.next(&mut course, &failure).await {
                Next::Again => {}
                Next::GiveUp => return Err(failure),
                Next::Lost(error) => return Err(Failure::unsent(error)),
            }
        }
    }

    fn wire(&self, node: &Place) -> Arc<Wire> {
        let mut nodes = self.lock();
        if let Some(wire) = nodes.get(node) {
            return Arc::clone(wire);
        }
        // nodes that are no more are forgotten when others come
        nodes.retain(|known, _| self.server.cluster.as_ref().is_some_and(|cluster| cluster.knows(known)));
        let wire = Arc::new(Wire::new(Arc::clone(&self.server), Some(node.clone()), self.response_timeout));
        nodes.insert(node.clone(), Arc::clone(&wire));
        wire
    }

    pub(crate) fn close(&self) {
        self.only.close();
        self.lock().drain().for_each(|(_, wire)| wire.close());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Arc<Wire>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection with one user, to the server that has the user's key. It follows no redirection: what the user does there
/// ends with the error, and a new link leads to where the key is by then.
#[derive(Clone)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    /// The node of a cluster.
    node: Option<Place>,
    /// The node does not have the key's slot yet, only the key.
    asking: bool,
}

impl Link {
    pub(crate) async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        Call { command, script: None }.send(&mut self.connection, self.asking).await
    }

    pub(crate) async fn invoke(
        &mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[Vec<u8>],
    ) -> Result<Value, RedisError> {
        self.call(&evaluate(script, keys, arguments), script).await
    }

    /// The same, by the command that calls it.
    pub(crate) async fn call(&mut self, command: &Cmd, script: &Script) -> Result<Value, RedisError> {
        Call { command, script: Some(script) }.send(&mut self.connection, self.asking).await
    }

    /// How to end a command that blocks on it, where the server tells.
    pub(crate) async fn handle(&mut self) -> Option<Handle> {
        let number = cmd("CLIENT").arg("ID").query_async(&mut self.connection).await.ok()?;
        Some(Handle { number, node: self.node.clone() })
    }
}

/// A [`Link`] as its server numbers it.
pub(crate) struct Handle {
    number: i64,
    node: Option<Place>,
}

impl Handle {
    /// Ends the command that blocks on it as if its time were over (`CLIENT UNBLOCK`).
    pub(crate) async fn unblock(&self, line: &Line) -> Result<(), RedisError> {
        let mut unblock = cmd("CLIENT");
        unblock.arg("UNBLOCK").arg(self.number).arg("TIMEOUT");
        line.query_at::<i64>(self.node.as_ref(), &unblock).await.map(drop)
    }
}

/// An answer that is not of the shape it must have.
pub(crate) fn odd_answer(command: &'static str) -> RedisError {
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        "the server's answer is not of the expected shape",
        command.into(),
    ))
}
