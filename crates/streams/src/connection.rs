//! Connections: opening them on our own runtime, and [`Line`]s, which open again when their connection is lost.
//!
//! Knows deadlines, and nothing of streams.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, cmd};
use steadfast_core::ConnectError;

use crate::address::Address;
use crate::error::{Trouble, trouble};
use crate::names::Owners;
use crate::options::Options;
use crate::resume::Resume;
use crate::runtime;

/// The server that all connections of one [`Streams`](crate::Streams) go to.
pub(crate) struct Server {
    place: Address,
    /// `host:port/database`, or the sentinels and the master's name, which may be shown to anyone.
    pub(crate) address: String,
    pub(crate) options: Options,
    pub(crate) resume: Resume,
    pub(crate) owners: Arc<Owners>,
    closed: AtomicBool,
}

impl Server {
    /// Checks the URL; opens nothing.
    pub(crate) fn new(options: Options) -> Result<Self, ConnectError> {
        let place = Address::of(&options)?;
        Ok(Self {
            address: place.to_string(),
            place,
            options,
            resume: Resume::default(),
            owners: Arc::new(Owners::new()),
            closed: AtomicBool::new(false),
        })
    }

    /// Opens one more connection, on which a command may take `response_timeout`.
    pub(crate) async fn open(&self, response_timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
        if self.is_closed() {
            let closed = io::Error::new(io::ErrorKind::NotConnected, "this broker was closed");
            return Err(closed.into());
        }
        let (place, limit) = (self.place.clone(), self.options.connect_timeout);
        // the connection's driver is spawned where it is opened
        runtime::run(async move { place.open(response_timeout, limit).await }).await?
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One shared connection that is opened by the first call that needs it, and again by the next after it is lost.
pub(crate) struct Line {
    server: Arc<Server>,
    response_timeout: Duration,
    state: Mutex<LineState>,
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct LineState {
    current: Option<Held>,
    /// When the last attempt to open failed, and how.
    failure: Option<(Instant, RedisError)>,
}

#[derive(Clone)]
struct Held {
    connection: MultiplexedConnection,
    number: u64,
    used: Instant,
}

/// A connection that was idle for this long is asked whether it still stands before anything is sent whose fate would be
/// unknown otherwise.
const IDLE: Duration = Duration::from_secs(2);

/// A connection on loan; its number says which one was lost.
pub(crate) struct Loan {
    pub(crate) connection: MultiplexedConnection,
    number: u64,
}

impl Line {
    pub(crate) fn new(server: Arc<Server>, response_timeout: Duration) -> Self {
        let (state, opening) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Self { server, response_timeout, state, opening }
    }

    /// The connection there is, or a new one.
    pub(crate) async fn get(&self) -> Result<Loan, RedisError> {
        let asked = Instant::now();
        if let Some(held) = self.fresh() {
            return Ok(held.into());
        }
        // one asks or opens, the others wait for what it gets, be it an error
        let _opening = self.opening.lock().await;
        if let Some(held) = self.fresh() {
            return Ok(held.into());
        }
        if let Some((_, error)) = self.lock().failure.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        if let Some(held) = self.still_stands().await {
            return Ok(held.into());
        }
        let opened = self.server.open(self.response_timeout).await;
        let mut state = self.lock();
        match opened {
            Ok(connection) => {
                let held = Held { connection, number: next_number(), used: Instant::now() };
                (state.current, state.failure) = (Some(held.clone()), None);
                Ok(held.into())
            }
            Err(error) => {
                (state.current, state.failure) = (None, Some((Instant::now(), error.clone())));
                Err(error)
            }
        }
    }

    /// Whether there is a connection that answers, be it a new one.
    pub(crate) async fn check(&self) -> Result<(), RedisError> {
        let stands = {
            let _opening = self.opening.lock().await;
            self.still_stands().await.is_some()
        };
        if stands { Ok(()) } else { self.get().await.map(drop) }
    }

    /// The connection, if it was used a moment ago.
    fn fresh(&self) -> Option<Held> {
        let now = Instant::now();
        let mut state = self.lock();
        let held = state.current.as_mut().filter(|held| now.duration_since(held.used) < IDLE)?;
        held.used = now;
        Some(held.clone())
    }

    /// The connection, if it answers.
    async fn still_stands(&self) -> Option<Held> {
        let mut held = self.lock().current.clone()?;
        let limit = self.server.options.connect_timeout;
        let ping = cmd("PING");
        let answer = tokio::time::timeout(limit, held.connection.send_packed_command(&ping)).await;
        // an error reply is an answer
        let stands = answer.is_ok_and(|answer| answer.is_ok());
        held.used = Instant::now();
        self.lock().current = stands.then(|| held.clone());
        stands.then_some(held)
    }

    /// What is known of lost groups.
    pub(crate) fn resume(&self) -> &Resume {
        &self.server.resume
    }

    /// Drops the connection after an error that leaves it useless or suspect. Others may have replaced it already.
    pub(crate) fn failed(&self, number: u64, error: &RedisError) {
        // a replica answers what it likes and does nothing: the master is elsewhere by now
        let demoted = error.code() == Some("READONLY");
        if demoted || matches!(trouble(error), Trouble::Cut | Trouble::Silent) {
            let mut state = self.lock();
            if state.current.as_ref().is_some_and(|held| held.number == number) {
                state.current = None;
            }
        }
    }

    /// Runs one command.
    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let mut loan = self.get().await?;
        let answer = command.query_async(&mut loan.connection).await;
        self.checked(&loan, answer)
    }

    /// Runs a script by its hash; loads it first where the server does not have it (any more).
    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[&str],
        arguments: &[Vec<u8>],
    ) -> Result<T, RedisError> {
        let mut loan = self.get().await?;
        self.script_on(&mut loan, script, keys, arguments).await
    }

    /// The same on a connection that is on loan already: whatever fails, it may have been run.
    pub(crate) async fn script_on<T: FromRedisValue>(
        &self,
        loan: &mut Loan,
        script: &Script,
        keys: &[&str],
        arguments: &[Vec<u8>],
    ) -> Result<T, RedisError> {
        let answer = invoke(&mut loan.connection, script, keys, arguments).await;
        self.checked(loan, answer)
    }

    pub(crate) fn close(&self) {
        self.lock().current = None;
    }

    fn checked<T>(&self, loan: &Loan, answer: Result<T, RedisError>) -> Result<T, RedisError> {
        answer.inspect_err(|error| self.failed(loan.number, error))
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl From<Held> for Loan {
    fn from(held: Held) -> Self {
        Self { connection: held.connection, number: held.number }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a script on this connection by its hash; loads it first where the server does not have it.
pub(crate) async fn invoke<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    script: &Script,
    keys: &[&str],
    arguments: &[Vec<u8>],
) -> Result<T, RedisError> {
    // the client's own way copies every argument twice
    let size: usize = keys.iter().map(|key| key.len()).chain(arguments.iter().map(Vec::len)).sum();
    let mut call = Cmd::with_capacity(3 + keys.len() + arguments.len(), size + 64);
    call.arg("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
    match call.query_async(connection).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            script.load_async(connection).await?;
            call.query_async(connection).await
        }
        answer => answer,
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
