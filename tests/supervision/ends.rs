//! The table of ends, and what holds for each of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steadfast::EventKind;
use tokio::time::Instant;

use crate::ledger::Order;
use crate::log::Seen;
use crate::server::{ANSWER, Server};
use crate::stage::{SIBLING, Stage, VICTIM};

/// One way to end.
struct End {
    name: &'static str,
    fault: Fault,
    /// What the event says, among other things.
    cause: &'static [&'static str],
    /// Restarts that it costs: none where the broker is away.
    spends: u32,
    /// Whether the sibling has to go down with it, because what ends is more than one subscription.
    shared: bool,
    /// What it may take beyond the last delay and a second.
    more: Duration,
}

#[derive(Clone, Copy)]
enum Fault {
    /// A method that the broker refuses, on the consumer's channel.
    Channel(&'static str),
    /// The queue or the stream goes; what is in it would be lost by the operator's hand, so it is empty.
    Deleted(&'static [&'static str]),
    /// Something else that the operator does.
    Told(&'static [&'static str]),
    /// The connection that the consumer reads from is cut.
    Cut,
    /// A handler that does not end, until the broker wants its delivery back.
    Unacknowledged,
    /// The handler panics, and the next one cannot be made at once.
    Factory,
    /// SIGKILL, then the same server again with the same data.
    Killed,
    /// SIGSTOP, until the consumer has noticed.
    Halted,
}

const NONE: Duration = Duration::ZERO;

const ON_RABBITMQ: [End; 8] = [
    End {
        name: "channel error 406",
        fault: Fault::Channel("{'basic.ack', 4711, false}"),
        cause: &["subscription ended", "PRECONDITION_FAILED", "unknown delivery tag 4711"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "channel error 404",
        fault: Fault::Channel(
            "{'queue.declare', 0, <<\"no-such-queue\">>, true, false, false, false, false, []}",
        ),
        cause: &["subscription ended", "NOT_FOUND", "no-such-queue"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "queue deleted: basic.cancel",
        fault: Fault::Deleted(&["delete_queue"]),
        cause: &["subscription ended", "cancelled", "deleted"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "acknowledgement timeout",
        fault: Fault::Unacknowledged,
        cause: &["subscription ended", "PRECONDITION_FAILED", "timed out"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "factory error",
        fault: Fault::Factory,
        cause: &["handler factory failed", "the ledger's database is away"],
        spends: 2,
        shared: false,
        more: NONE,
    },
    End {
        name: "connection closed by the operator",
        fault: Fault::Told(&["close_all_connections", "tired of it"]),
        cause: &["subscription ended", "connection was lost", "tired of it"],
        spends: 0,
        shared: true,
        more: NONE,
    },
    End {
        name: "kill -9 and restart",
        fault: Fault::Killed,
        cause: &["subscription ended", "connection was lost"],
        spends: 0,
        shared: true,
        // the port answers before every queue has found its leader again
        more: Duration::from_secs(3),
    },
    End {
        name: "closed once more, after the restart",
        fault: Fault::Told(&["close_all_connections", "still tired"]),
        cause: &["still tired"],
        spends: 0,
        shared: true,
        more: NONE,
    },
];

const ON_REDIS: [End; 6] = [
    End {
        name: "CLIENT KILL",
        fault: Fault::Cut,
        cause: &["subscription ended", "read group `workers`"],
        spends: 0,
        shared: false,
        more: NONE,
    },
    End {
        name: "XGROUP DESTROY",
        fault: Fault::Told(&["XGROUP", "DESTROY", "{queue}", "workers"]),
        cause: &["subscription ended", "NOGROUP"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "stream deleted",
        fault: Fault::Deleted(&["DEL"]),
        // the first word where the reader was waiting at the server, the second where it was not
        cause: &["subscription ended", "UNBLOCKED|NOGROUP"],
        spends: 1,
        shared: false,
        more: NONE,
    },
    End {
        name: "factory error",
        fault: Fault::Factory,
        cause: &["handler factory failed", "the ledger's database is away"],
        spends: 2,
        shared: false,
        more: NONE,
    },
    End {
        name: "kill -9 and restart",
        fault: Fault::Killed,
        cause: &["subscription ended", "read group `workers`"],
        spends: 0,
        shared: true,
        more: NONE,
    },
    End {
        name: "halted",
        fault: Fault::Halted,
        cause: &["subscription ended", "no answer in time"],
        spends: 0,
        shared: true,
        // an attempt that began while it was halted may have to run out
        more: ANSWER,
    },
];

/// The longest first delay: 100 ms, and a fifth by chance.
const FIRST: Duration = Duration::from_millis(120);
/// The longest delay while the broker is away.
const AWAY: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_comes_back_from_every_end_on_rabbitmq() {
    let server = Server::rabbit().await;
    for end in &ON_RABBITMQ {
        end.meet(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_comes_back_from_every_end_on_redis() {
    let server = Server::redis().await;
    for end in &ON_REDIS {
        end.meet(&server).await;
    }
}

/// A panic ends no subscription: it costs the message an attempt and the consumer its handler. The next one is held back
/// here, so that it can be seen that nobody is told "ready" meanwhile.
async fn a_panic_is_named_and_not_ready_until_there_is_another_handler(server: Arc<Server>) {
    let stage = Stage::open(&server, 0).await;
    let before = stage.log.len();
    let held = stage.maker.gate.acquire().await.expect("open");
    stage.order(Order::Panic).await;
    let panicked = |what: &EventKind| *what == EventKind::HandlerPanicked { why: "told to panic".to_owned() };
    stage.log.until(before, VICTIM, panicked).await;
    stage.until_health("victim: its handler panicked").await;

    let returned = Instant::now();
    drop(held);
    stage.log.until(before, VICTIM, |what| *what == EventKind::HandlerReplaced).await;
    let took = stage.victim.ledger.worked_after(returned).await - returned;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    stage.tree.until_ready().await.expect("ready");
    let stats = stage.tree.child(VICTIM).expect("there").stats;
    assert_eq!((stats.panics, stats.restarts), (1, 1));
    let others = stage.log.since(before).into_iter().filter(|seen| !seen.is_of(VICTIM)).count();
    assert_eq!(others, 0, "nothing else was said: {:#?}", stage.log.since(before));
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_no_end_on_rabbitmq() {
    a_panic_is_named_and_not_ready_until_there_is_another_handler(Server::rabbit().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_no_end_on_redis() {
    a_panic_is_named_and_not_ready_until_there_is_another_handler(Server::redis().await).await;
}

impl End {
    async fn meet(&self, server: &Arc<Server>) {
        let stage = Stage::open(server, self.spends).await;
        let before = stage.log.len();
        let returned = self.fault.strike(&stage, before).await;

        let failed = stage.log.until(before, VICTIM, is_failed).await;
        let at = stage.log.since(before).iter().position(|seen| seen.at == failed.at).expect("it is there");
        let running = stage.log.until(before + at, VICTIM, |what| *what == EventKind::Running).await;
        let worked = stage.victim.ledger.worked_after(running.at).await;

        let seen = stage.log.since(before);
        self.names_the_cause(&failed);
        let waited = self.was_not_ready_in_between(&seen, running.at);
        assert!(waited <= if returned.is_some() { AWAY } else { FIRST }, "{}: waited {waited:?}", self.name);
        let allowed = returned.map_or(failed.at, |returned| returned.max(failed.at));
        let (took, bound) = (worked - allowed, waited + Duration::from_secs(1) + self.more);
        println!("{}: works again {took:?} after it could, {bound:?} are allowed", self.name);
        assert!(took <= bound, "{}: {took:?} is more than {bound:?}; {seen:#?}", self.name);
        self.left_the_sibling_alone(&stage, &seen);
        stage.tree.until_ready().await.expect("ready");
        stage.close().await;
    }

    fn names_the_cause(&self, failed: &Seen) {
        let EventKind::Failed { why, outage } = &failed.event.what else { panic!("{failed:?}") };
        for cause in self.cause {
            let named = cause.split('|').any(|cause| why.contains(cause));
            assert!(named, "{}: `{cause}` is not in `{why}`", self.name);
        }
        assert_eq!(*outage, self.spends == 0, "{}: {why}", self.name);
    }

    /// The last delay before it ran again.
    fn was_not_ready_in_between(&self, seen: &[Seen], running: Instant) -> Duration {
        let down = seen.iter().filter(|seen| seen.is_of(VICTIM) && seen.at < running);
        let mut waited = None;
        for seen in down {
            if let EventKind::BackingOff { after, .. } = seen.event.what {
                waited = Some(after);
            } else if !is_failed(&seen.event.what) {
                continue;
            }
            let named = seen.health.why.iter().any(|why| why.starts_with("tree/victim: "));
            assert!(!seen.health.ready && named, "{}: {seen:?}", self.name);
        }
        waited.expect("it waited before it was started again")
    }

    fn left_the_sibling_alone(&self, stage: &Stage, seen: &[Seen]) {
        let restarts = stage.tree.child(SIBLING).expect("there").stats.restarts;
        let events: Vec<_> = seen.iter().filter(|seen| seen.is_of(SIBLING)).collect();
        if !self.shared {
            assert!(events.is_empty() && restarts == 0, "{}: {events:#?}", self.name);
        }
    }
}

impl Fault {
    /// When the broker was there again, where it was away meanwhile.
    async fn strike(self, stage: &Stage, before: usize) -> Option<Instant> {
        let (server, queue) = (&stage.server, stage.victim.name.clone());
        match self {
            Self::Channel(method) => server.on(move |server| server.inject(&queue, method)).await,
            Self::Told(command) => {
                let named = move |part: &&'static str| part.replace("{queue}", &queue);
                let command: Vec<String> = command.iter().map(named).collect();
                let tell = move |server: &Server| {
                    server.tell(&command.iter().map(String::as_str).collect::<Vec<_>>());
                };
                server.on(tell).await;
            }
            Self::Deleted(command) => {
                let _quiet = stage.quiet().await;
                server.on(move |server| drop(server.tell(&[command, &[&queue]].concat()))).await;
            }
            Self::Cut => server.on(Server::cut_youngest).await,
            Self::Unacknowledged => stage.order(Order::Hang).await,
            Self::Factory => {
                stage.maker.fails.store(1, Ordering::Relaxed);
                stage.order(Order::Panic).await;
            }
            Self::Killed => {
                server.on(Server::kill9).await;
                stage.log.until(before, VICTIM, is_failed).await;
                server.on(Server::restart).await;
                return Some(Instant::now());
            }
            Self::Halted => {
                server.on(Server::pause).await;
                stage.log.until(before, VICTIM, is_failed).await;
                server.on(Server::resume).await;
                return Some(Instant::now());
            }
        }
        None
    }
}

fn is_failed(what: &EventKind) -> bool {
    matches!(what, EventKind::Failed { .. })
}
