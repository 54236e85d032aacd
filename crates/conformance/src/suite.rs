//! How the suite reaches a broker, and how patient it is with it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast_core::{Broker, ConnectError, Source};

use crate::property::{Need, PROPERTIES, Property};
use crate::report::{Report, Verdict};
use crate::trial::Trial;

/// The suite, set up for one broker.
pub struct Suite {
    pub(crate) connect: Connect,
    pub(crate) source: ToSource,
    pub(crate) dead_source: ToSource,
    without: Vec<Need>,
    pub(crate) deadline: Duration,
    pub(crate) quiet: Duration,
    pub(crate) slack: Duration,
}

type Connect = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Broker>, ConnectError>> + Send + Sync>;
type ToSource = Box<dyn Fn(&str) -> Source + Send + Sync>;

impl Suite {
    /// A suite that connects by `connect`: each call is a new connection to one and the same broker.
    pub fn new<F, C>(connect: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<Arc<dyn Broker>, ConnectError>> + Send + 'static,
    {
        Self {
            connect: Box::new(move || Box::pin(connect())),
            source: Box::new(|name| Source::queue(name)),
            dead_source: Box::new(|name| Source::queue(name)),
            without: Vec::new(),
            deadline: Duration::from_secs(30),
            quiet: Duration::from_millis(300),
            slack: Duration::from_secs(1),
        }
    }

    /// How a name becomes a source, for a broker with more than one kind. Default: [`Source::queue`].
    #[must_use]
    pub fn source(mut self, source: impl Fn(&str) -> Source + Send + Sync + 'static) -> Self {
        self.source = Box::new(source);
        self
    }

    /// How the name of a dead-letter destination becomes a source to read it by, as the broker itself declared it for a
    /// subscription. Default: [`Source::queue`].
    #[must_use]
    pub fn dead_source(mut self, source: impl Fn(&str) -> Source + Send + Sync + 'static) -> Self {
        self.dead_source = Box::new(source);
        self
    }

    /// This kind of source cannot do what the broker otherwise can: a classic queue of RabbitMQ does not count deliveries.
    #[must_use]
    pub fn without(mut self, need: Need) -> Self {
        self.without.push(need);
        self
    }

    /// How long anything may take that has to happen, and a whole property at most twice that. Default 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long to watch for what must not happen. Default 300 ms.
    #[must_use]
    pub fn quiet(mut self, quiet: Duration) -> Self {
        self.quiet = quiet;
        self
    }

    /// How much later than promised a busy machine may make things that have to happen "at once" or after a delay.
    /// Default 1 s.
    #[must_use]
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Tries one property.
    pub async fn check(&self, property: &Property) -> Verdict {
        let trial = match Trial::open(self, property).await {
            Ok(trial) => trial,
            Err(violation) => return Verdict::Failed(violation),
        };
        let needs = property.needs();
        if self.without.contains(&needs) || !needs.met_by(trial.capabilities()) {
            trial.close().await;
            return Verdict::Skipped(needs);
        }
        let tried = tokio::time::timeout(self.deadline * 2, property.run(&trial)).await;
        let verdict = match tried {
            Ok(Ok(())) => Verdict::Kept,
            Ok(Err(violation)) => Verdict::Failed(violation),
            Err(_) => Verdict::Failed(trial.violated(format!("no end within {:?}", self.deadline * 2))),
        };
        trial.close().await;
        verdict
    }

    /// Tries all [`PROPERTIES`], one after another.
    pub async fn run(&self) -> Report {
        let mut report = Report::default();
        for property in PROPERTIES {
            report.lines.push((property.name(), self.check(property).await));
        }
        report
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("deadline", &self.deadline)
            .field("quiet", &self.quiet)
            .field("slack", &self.slack)
            .finish_non_exhaustive()
    }
}
