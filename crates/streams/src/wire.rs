//! One connection that many share, to one place: opened by the first call that needs it, and again by the next after it is
//! lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value, cmd, pipe};

use crate::address::Place;
use crate::connection::Server;
use crate::error::is_lost;

/// A connection that was idle for this long is asked whether it still stands before anything is sent whose fate would be
/// unknown otherwise.
const IDLE: Duration = Duration::from_secs(2);

pub(crate) struct Wire {
    server: Arc<Server>,
    /// The node of a cluster; none where there is but one server.
    node: Option<Place>,
    response_timeout: Duration,
    state: Mutex<State>,
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    current: Option<Held>,
    /// When the last attempt to open failed, and how.
    failure: Option<(Instant, RedisError)>,
}

/// The connection there is; its number says which one was lost.
#[derive(Clone)]
struct Held {
    connection: MultiplexedConnection,
    number: u64,
    used: Instant,
}

/// A command that failed, and whether the server may have got it.
pub(crate) struct Failure {
    pub(crate) error: RedisError,
    pub(crate) sent: bool,
}

impl Failure {
    pub(crate) fn unsent(error: RedisError) -> Self {
        Self { error, sent: false }
    }
}

impl From<Failure> for RedisError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// A command, or a script that is called by its hash and loaded where the server does not have it (any more).
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) command: &'a Cmd,
    pub(crate) script: Option<&'a Script>,
}

impl Call<'_> {
    /// Sends it over this connection; with `asking` to a node that is about to take the key's slot over.
    pub(crate) async fn send(
        self,
        connection: &mut MultiplexedConnection,
        asking: bool,
    ) -> Result<Value, RedisError> {
        let answer = send(connection, self.command, asking).await;
        let (Some(script), Err(error)) = (self.script, &answer) else { return answer };
        if error.kind() != ErrorKind::Server(ServerErrorKind::NoScript) {
            return answer;
        }
        script.load_async(connection).await?;
        send(connection, self.command, asking).await
    }
}

async fn send(
    connection: &mut MultiplexedConnection,
    command: &Cmd,
    asking: bool,
) -> Result<Value, RedisError> {
    if !asking {
        return connection.send_packed_command(command).await.and_then(Value::extract_error);
    }
    // the word counts for the next command of this connection only, so both go as one
    let mut both = pipe();
    both.cmd("ASKING").add_command(command.clone());
    let mut answers = connection.send_packed_commands(&both, 1, 1).await?;
    answers.pop().unwrap_or(Value::Nil).extract_error()
}

/// The command that calls a script with these keys and arguments.
pub(crate) fn evaluate(script: &Script, keys: &[&str], arguments: &[Vec<u8>]) -> Cmd {
    // the client's own way copies every argument twice
    let size: usize = keys.iter().map(|key| key.len()).chain(arguments.iter().map(Vec::len)).sum();
    let mut command = Cmd::with_capacity(3 + keys.len() + arguments.len(), size + 64);
    command.arg("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys).arg(arguments);
    command
}

impl Wire {
    pub(crate) fn new(server: Arc<Server>, node: Option<Place>, response_timeout: Duration) -> Self {
        let (state, opening) = (Mutex::default(), tokio::sync::Mutex::new(()));
        Self { server, node, response_timeout, state, opening }
    }

    /// Sends one command over the connection there is, or a new one.
    pub(crate) async fn send(&self, call: Call<'_>, asking: bool) -> Result<Value, Failure> {
        let mut held = self.get().await.map_err(Failure::unsent)?;
        call.send(&mut held.connection, asking).await.map_err(|error| {
            self.failed(held.number, &error);
            Failure { error, sent: true }
        })
    }

    /// Whether there is a connection that answers, be it a new one.
    pub(crate) async fn check(&self) -> Result<(), RedisError> {
        let stands = {
            let _opening = self.opening.lock().await;
            self.still_stands().await.is_some()
        };
        if stands { Ok(()) } else { self.get().await.map(drop) }
    }

    pub(crate) fn close(&self) {
        self.lock().current = None;
    }

    async fn get(&self) -> Result<Held, RedisError> {
        let asked = Instant::now();
        if let Some(held) = self.fresh() {
            return Ok(held);
        }
        // one asks or opens, the others wait for what it gets, be it an error
        let _opening = self.opening.lock().await;
        if let Some(held) = self.fresh() {
            return Ok(held);
        }
        if let Some((_, error)) = self.lock().failure.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        if let Some(held) = self.still_stands().await {
            return Ok(held);
        }
        let opened = self.server.connect(self.node.as_ref(), self.response_timeout).await;
        let mut state = self.lock();
        match opened {
            Ok(connection) => {
                let held = Held { connection, number: next_number(), used: Instant::now() };
                (state.current, state.failure) = (Some(held.clone()), None);
                Ok(held)
            }
            Err(error) => {
                (state.current, state.failure) = (None, Some((Instant::now(), error.clone())));
                Err(error)
            }
        }
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

    /// Drops the connection after an error that leaves it useless or suspect. Others may have replaced it already.
    fn failed(&self, number: u64, error: &RedisError) {
        if is_lost(error) {
            let mut state = self.lock();
            if state.current.as_ref().is_some_and(|held| held.number == number) {
                state.current = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
