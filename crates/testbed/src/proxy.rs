//! A way to a broker that stops at one chosen step of the conversation, so that a test can take away either end right there.
//!
//! It reads AMQP 0-9-1 frames and Redis commands as far as it takes to know a step, and changes nothing. What it held when
//! it was cut never arrives.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::{TestbedError, TestbedErrorKind};
use crate::wire::{self, Method};

/// Which protocol the broker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// AMQP 0-9-1
    Amqp,
    /// Redis' RESP
    Resp,
}

/// Where a copy of a message is on its way. Everything stops before what is named here is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// AMQP: `basic.publish`. Redis: the command.
    Request,
    /// AMQP: the broker's `basic.ack` for that publish. Redis: what the server says next on that connection.
    Answer,
    /// AMQP: the client's next `basic.ack` after that. Redis settles in the command itself, so never.
    Settle,
}

/// A proxy on the loopback address, in front of one broker. Its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wire: Wire,
    broker: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    watch: Option<Watch>,
    connections: u64,
    sockets: Vec<TcpStream>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// The step was reached: nothing goes either way.
    Held,
    /// There are no connections, and none is taken.
    Cut,
    /// The proxy was dropped.
    Gone,
}

#[derive(Debug)]
struct Watch {
    step: Step,
    needles: Vec<Vec<u8>>,
    progress: Progress,
}

/// How far the copy that is watched has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Awaited,
    /// Asked on this connection; in AMQP on this channel, as its publish of this number.
    Asked(u64, u16, u64),
    Answered,
}

/// What of a connection is needed to tell whose answer is whose.
#[derive(Debug, Default)]
struct Told {
    number: u64,
    /// Publishes of each channel.
    published: HashMap<u16, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Broker,
}

impl Proxy {
    /// In front of the broker on this port of the loopback address; everything passes.
    ///
    /// # Errors
    /// If there is no port to listen on.
    pub fn start(wire: Wire, broker: u16) -> Result<Self, TestbedError> {
        let io = |source| TestbedError::io("listening for the proxy", source);
        let [port] = crate::ports::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(io)?;
        let state = State { mode: Mode::Open, watch: None, connections: 0, sockets: Vec::new() };
        let shared = Arc::new(Shared { wire, broker, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Ok(Self { port, shared })
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops everything at this step of the next request in which all of `needles` occur: of a publish its exchange and
    /// routing key are looked at, of a Redis command all of it.
    pub fn stop_at<N: AsRef<str>>(&self, step: Step, needles: &[N]) {
        let needles = needles.iter().map(|needle| needle.as_ref().as_bytes().to_vec()).collect();
        self.shared.state().watch = Some(Watch { step, needles, progress: Progress::Awaited });
    }

    /// Waits until the step is reached.
    ///
    /// # Errors
    /// If it is not within `patience`.
    pub fn until_held(&self, patience: Duration) -> Result<(), TestbedError> {
        let waiting = |state: &mut State| state.mode != Mode::Held;
        let waited = self.shared.changed.wait_timeout_while(self.shared.state(), patience, waiting);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let what = format!("the proxy saw no such step within {patience:?}: {:?}", state.watch);
            return Err(TestbedError::new(TestbedErrorKind::Deadline, what));
        }
        Ok(())
    }

    /// Ends all connections, with what is held of them, and takes no more.
    pub fn cut(&self) {
        self.shared.end(Mode::Cut);
    }

    /// Takes connections again.
    pub fn open(&self) {
        self.shared.state().mode = Mode::Open;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end(Mode::Gone);
        // the listener finds out when it has accepted once more
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    /// Nothing here leaves the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, mode: Mode) {
        let mut state = self.state();
        state.mode = mode;
        for socket in state.sockets.drain(..) {
            // the other end may have gone first
            drop(socket.shutdown(Shutdown::Both));
        }
        self.changed.notify_all();
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().map_while(Result::ok) {
            if self.state().mode == Mode::Gone {
                return;
            }
            // while the broker is away, the client is hung up on
            if let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)) {
                drop(self.join(client, broker));
            }
        }
    }

    fn join(self: &Arc<Self>, client: TcpStream, broker: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        broker.set_nodelay(true)?;
        let ends = [(From::Client, client.try_clone()?, broker.try_clone()?)];
        let mut state = self.state();
        if state.mode != Mode::Open {
            return Ok(());
        }
        state.connections += 1;
        let told = Told { number: state.connections, published: HashMap::new() };
        let told = Arc::new(Mutex::new(told));
        state.sockets.extend([client.try_clone()?, broker.try_clone()?]);
        for (from, reads, writes) in ends.into_iter().chain([(From::Broker, broker, client)]) {
            let (shared, told) = (Arc::clone(self), Arc::clone(&told));
            thread::spawn(move || {
                shared.pump(from, &reads, &writes, &told);
                drop(reads.shutdown(Shutdown::Both));
                drop(writes.shutdown(Shutdown::Both));
            });
        }
        Ok(())
    }

    /// Passes on one unit after another, until either side is done or it may no more.
    fn pump(&self, from: From, mut reads: &TcpStream, mut writes: &TcpStream, told: &Mutex<Told>) {
        let (mut waiting, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        while let Ok(count @ 1..) = reads.read(&mut chunk) {
            waiting.extend_from_slice(&chunk[..count]);
            while let Some(length) = self.unit(from, &waiting) {
                let unit: Vec<u8> = waiting.drain(..length).collect();
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                let may = self.may_pass(from, &unit, &mut told);
                drop(told);
                if !may || writes.write_all(&unit).is_err() {
                    return;
                }
            }
        }
    }

    /// How many bytes of what is there are looked at as one.
    fn unit(&self, from: From, waiting: &[u8]) -> Option<usize> {
        match (self.wire, from) {
            (Wire::Amqp, _) => wire::frame(waiting),
            (Wire::Resp, From::Client) => wire::command(waiting),
            // whose answer it is does not show in the answer
            (Wire::Resp, From::Broker) => (!waiting.is_empty()).then_some(waiting.len()),
        }
    }

    /// Does not return while everything is held.
    fn may_pass(&self, from: From, unit: &[u8], told: &mut Told) -> bool {
        let mut state = self.state();
        if state.mode == Mode::Open && self.reached(&mut state.watch, from, unit, told) {
            (state.mode, state.watch) = (Mode::Held, None);
            self.changed.notify_all();
        }
        if state.mode == Mode::Open {
            return true;
        }
        let held = self.changed.wait_while(state, |state| state.mode == Mode::Held);
        drop(held);
        // what was held is lost with its connection
        false
    }

    fn reached(&self, watch: &mut Option<Watch>, from: From, unit: &[u8], told: &mut Told) -> bool {
        let (step, progress) = match self.wire {
            Wire::Amqp => amqp(watch.as_ref(), from, unit, told),
            Wire::Resp => resp(watch.as_ref(), from, unit, told),
        }
        .unzip();
        let (Some(watch), Some(step), Some(progress)) = (watch.as_mut(), step, progress) else {
            return false;
        };
        watch.progress = progress;
        step == watch.step && progress != Progress::Awaited
    }
}

/// PURE but for the counts: the step that this frame is of the copy that is watched, and how far it is after it.
fn amqp(watch: Option<&Watch>, from: From, frame: &[u8], told: &mut Told) -> Option<(Step, Progress)> {
    let (channel, method) = wire::method(frame)?;
    if from == From::Client && method == Method::Publish {
        *told.published.entry(channel).or_default() += 1;
    }
    if from == From::Client && method == Method::ChannelOpen {
        told.published.remove(&channel);
    }
    let watch = watch?;
    match (watch.progress, from, method) {
        (Progress::Awaited, From::Client, Method::Publish) if watch.is_in(frame) => {
            let number = told.published.get(&channel).copied().unwrap_or_default();
            Some((Step::Request, Progress::Asked(told.number, channel, number)))
        }
        (Progress::Asked(connection, on, number), From::Broker, Method::Ack { tag, multiple })
            if (connection, on) == (told.number, channel) && (tag == number || multiple && tag > number) =>
        {
            Some((Step::Answer, Progress::Answered))
        }
        (Progress::Answered, From::Client, Method::Ack { .. }) => Some((Step::Settle, Progress::Answered)),
        _ => None,
    }
}

/// PURE: the same for Redis.
fn resp(watch: Option<&Watch>, from: From, unit: &[u8], told: &Told) -> Option<(Step, Progress)> {
    let watch = watch?;
    match (watch.progress, from) {
        (Progress::Awaited, From::Client) if watch.is_in(unit) => {
            Some((Step::Request, Progress::Asked(told.number, 0, 0)))
        }
        (Progress::Asked(connection, ..), From::Broker) if connection == told.number => {
            // the script is loaded, and the command comes again
            let unknown = unit.starts_with(b"-NOSCRIPT");
            Some(if unknown {
                (Step::Request, Progress::Awaited)
            } else {
                (Step::Answer, Progress::Answered)
            })
        }
        _ => None,
    }
}

impl Watch {
    fn is_in(&self, unit: &[u8]) -> bool {
        let has = |needle: &Vec<u8>| unit.windows(needle.len().max(1)).any(|window| window == needle);
        self.needles.iter().all(has)
    }
}
