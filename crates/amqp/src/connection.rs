//! A lane: one connection to the broker, opened again by the next call that needs it.
//!
//! Owns connecting: one attempt at a time, whose outcome is everybody's who waited for it, within a deadline. Leaves it
//! to the caller to find out that a connection is gone; nothing is recovered behind anybody's back.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};
use steadfast_core::{ConnectError, ConnectErrorKind};
use tokio::sync::{Mutex, watch};

use crate::error::{Fault, Sort, Trouble, sort};
use crate::link::{self, Cut, Kit, ServerName};
use crate::options::Options;
use crate::runtime::{self, within};

/// How often a connection that is watched is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// One connection, or the place of one.
pub(crate) struct Lane {
    options: Arc<Options>,
    role: &'static str,
    server: ServerName,
    state: Mutex<State>,
    /// Attempts that ended, so that whoever waited for one can tell that its outcome is news.
    attempts: AtomicU64,
    /// Nothing more may get under way.
    closing: AtomicBool,
    /// No connection may be opened any more.
    closed: AtomicBool,
    /// Publishes under way, which closing waits for.
    under_way: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    last_fault: Option<Fault>,
}

/// An open connection.
pub(crate) struct Live {
    connection: Connection,
    cut: Cut,
    limit: Duration,
}

impl Lane {
    pub(crate) fn new(options: Arc<Options>, role: &'static str, server: ServerName) -> Self {
        Self {
            options,
            role,
            server,
            state: Mutex::default(),
            attempts: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            under_way: watch::Sender::new(0),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// The connection: the one that is open, or a new one.
    pub(crate) async fn get(&self) -> Result<Arc<Live>, Fault> {
        let seen = self.attempts.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if self.closed.load(Ordering::Acquire) {
            return Err(self.fault(ConnectErrorKind::Unreachable, "it was closed by this program", None));
        }
        if let Some(live) = state.live.as_ref().filter(|live| live.is_open()) {
            return Ok(Arc::clone(live));
        }
        if let Some(fault) =
            state.last_fault.as_ref().filter(|_| self.attempts.load(Ordering::Acquire) != seen)
        {
            return Err(fault.clone());
        }
        state.live = None;
        let outcome = self.connect().await;
        self.attempts.fetch_add(1, Ordering::Release);
        match outcome {
            Ok(live) => {
                tracing::debug!(broker = %self.options, role = self.role, "connected");
                state.last_fault = None;
                Ok(Arc::clone(state.live.insert(Arc::new(live))))
            }
            Err(fault) => {
                state.last_fault = Some(fault.clone());
                Err(fault)
            }
        }
    }

    /// A new channel on the connection.
    pub(crate) async fn channel(&self) -> Result<(Arc<Live>, Channel), Trouble> {
        let live = self.get().await?;
        let channel = live.request(live.connection.create_channel()).await?;
        Ok((live, channel))
    }

    /// Ends when the connection that is open now is lost, and says of which kind it is.
    pub(crate) fn lost(&self, live: &Arc<Live>) -> impl Future<Output = ConnectError> + Send + use<> {
        let live = Arc::downgrade(live);
        let fault = self.fault(
            ConnectErrorKind::Unreachable,
            &format!("the connection to {} was lost", self.role),
            None,
        );
        async move {
            // the client tells those who use a connection, and nobody who only looks on
            while live.upgrade().is_some_and(|live| live.is_open()) {
                let _ = within(LOOK, pending::<()>()).await;
            }
            fault.into()
        }
    }

    /// Counts something as under way until the answer is dropped; none where the lane is closed.
    pub(crate) fn enter(&self) -> Option<UnderWay<'_>> {
        self.under_way.send_modify(|count| *count += 1);
        let entered = UnderWay(&self.under_way);
        (!self.closing.load(Ordering::Acquire)).then_some(entered)
    }

    /// Closes the connection when nothing is under way any more, and refuses to open another.
    pub(crate) async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let mut under_way = self.under_way.subscribe();
        // each of them has a deadline of its own; past it there is nothing to wait for
        let _ = within(self.options.deadline(), under_way.wait_for(|count| *count == 0)).await;
        self.closed.store(true, Ordering::Release);
        let live = self.state.lock().await.live.take();
        if let Some(live) = live.filter(|live| live.is_open()) {
            // whoever waits for an answer that does not come has nothing left to lose
            let _ = live.request(live.connection.close(200, "closed".into())).await;
            live.cut.cut();
        }
    }

    /// Tries the addresses in turn; one that says no, rather than nothing, speaks for all.
    async fn connect(&self) -> Result<Live, Fault> {
        let mut outcome = self.connect_to(0).await;
        for address in 1..self.options.addresses() {
            match &outcome {
                Err(fault) if fault.kind == ConnectErrorKind::Unreachable => {
                    tracing::debug!(broker = %self.options, why = fault.what, "the next address is tried");
                    outcome = self.connect_to(address).await;
                }
                Ok(_) | Err(_) => break,
            }
        }
        outcome
    }

    /// Connects on the connections' own runtime, so that a caller who goes away leaves nothing half done.
    async fn connect_to(&self, address: usize) -> Result<Live, Fault> {
        let runtime = runtime::handle()
            .map_err(|error| self.fault(ConnectErrorKind::Unreachable, &error.to_string(), None))?;
        let (options, role, server) = (Arc::clone(&self.options), self.role, Arc::clone(&self.server));
        let (cut, limit) = (Cut::default(), self.options.request_timeout());
        let watched = cut.clone();
        let attempt = runtime.spawn(async move {
            let opened = within(limit, open(options, address, role, server, cut.clone(), runtime)).await;
            if opened.is_err() {
                cut.cut();
            }
            opened
        });
        match attempt.await {
            Ok(Ok(Ok(connection))) => Ok(Live { connection, cut: watched, limit }),
            Ok(Ok(Err(error))) => Err(self.refused(error)),
            Ok(Err(runtime::Elapsed)) => {
                let why = format!("no answer within {limit:?}");
                Err(self.fault(ConnectErrorKind::Unreachable, &why, None))
            }
            Err(_) => Err(self.fault(ConnectErrorKind::Unreachable, "the attempt was abandoned", None)),
        }
    }

    fn refused(&self, error: lapin::Error) -> Fault {
        match sort(&error) {
            Sort::Refused | Sort::NotFound | Sort::Precondition | Sort::Unsupported => {
                let why = "refused: check the user, the password, the virtual host and its permissions";
                self.fault(ConnectErrorKind::Refused, why, Some(error))
            }
            Sort::Away | Sort::Channel => {
                self.fault(ConnectErrorKind::Unreachable, "cannot be reached", Some(error))
            }
        }
    }

    fn fault(&self, kind: ConnectErrorKind, why: &str, source: Option<lapin::Error>) -> Fault {
        Fault { kind, what: format!("connect to {}: {why}", self.options), source }
    }
}

/// See [`Lane::enter`].
pub(crate) struct UnderWay<'a>(&'a watch::Sender<usize>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("role", &self.role)
            .field("broker", &*self.options)
            .finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// The broker is short of memory or disk and reads nothing more from this connection.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Largest frame that was agreed on, in bytes.
    pub(crate) fn frame_max(&self) -> usize {
        usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX)
    }

    /// Waits for an answer of the broker, but not for ever.
    pub(crate) async fn request<T>(
        &self,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Trouble> {
        match within(self.limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            // a channel that fell with its connection says only that it is closed
            Ok(Err(_)) if !self.is_open() => Err(lost()),
            Ok(Err(error)) => Err(Trouble::Client(error)),
            Err(runtime::Elapsed) => Err(Trouble::Late(self.limit)),
        }
    }
}

fn lost() -> Trouble {
    let what = "the connection was lost".to_owned();
    Trouble::Connect(Fault { kind: ConnectErrorKind::Unreachable, what, source: None })
}

async fn open(
    options: Arc<Options>,
    address: usize,
    role: &'static str,
    server: ServerName,
    cut: Cut,
    runtime: &tokio::runtime::Handle,
) -> lapin::Result<Connection> {
    let name = format!("{} ({role})", options.name());
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let uri = options.uri();
    let dial = async move |_, _| Ok(link::open(&options, options.host(address), &cut, &server).await?);
    let kit = async_rs::Runtime::new(Kit::new(runtime));
    Connection::connector(uri, kit, dial, properties).await
}
