//! Everything that an application needs on the broker, as one value: what is missing, what differs, and declaring it.

use std::fmt;

use steadfast_core::{SubscribeError, SubscribeErrorKind};

use crate::broker::Amqp;
use crate::declare;
use crate::exchange::Exchange;
use crate::parts::{Part, add_exchange, add_queue};
use crate::queue::Queue;

/// Exchanges, queues and bindings that belong together.
///
/// Consumers declare what they need by themselves; this is for a deployment that declares everything in one step, or
/// looks first. Nothing is ever deleted or changed: what is declared otherwise is named with both values and left alone.
///
/// ```no_run
/// use steadfast_amqp::{Exchange, Queue, Topology};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = steadfast_amqp::connect("amqp://localhost").await?;
/// let topology = Topology::new()
///     .exchange(Exchange::fanout("shop.events"))
///     .queue(Queue::quorum("orders").bind(Exchange::topic("shop"), "order.*"));
/// println!("{}", topology.plan(&broker).await?);    // changes nothing
/// topology.apply(&broker).await?;                   // declares what is missing
/// topology.verify(&broker).await?;                  // an error where anything is missing or differs
/// # Ok(()) }
/// ```
///
/// It is data, for a file (TOML here; the command `steadfast topology` reads TOML and JSON). An exchange is named in a
/// binding, and described once, by `type`: `direct`, `topic`, `fanout`, `headers`, a plugin's `x-…`, or `passive` for one
/// that is somebody else's. A queue's `type` is `quorum` (the default), `classic` or `passive`; its other keys are called as
/// the methods of [`Queue`]:
///
/// ```toml
/// [[exchange]]
/// name = "shop"
/// type = "topic"                         # also: internal, auto_delete, alternate = "…", bind = [..]
///
/// [[queue]]
/// name = "orders"
/// max_length = 1000000
/// overflow = "reject-publish"            # or drop-head, reject-publish-dlx
/// message_ttl = "1d"
/// bind = [{ exchange = "shop", key = "order.*" }]   # or match = "all", headers = { region = "eu" }
/// ```
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(try_from = "crate::file::File")]
pub struct Topology {
    exchanges: Vec<Exchange>,
    queues: Vec<Queue>,
}

impl Topology {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An exchange, with what feeds it and its alternate.
    #[must_use]
    pub fn exchange(mut self, exchange: Exchange) -> Self {
        self.exchanges.push(exchange);
        self
    }

    /// A queue, with its bindings and the exchanges that they name.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queues.push(queue);
        self
    }

    /// What is there, what is missing and what differs. Declares nothing.
    ///
    /// Presence is asked for by passive declares. In what a thing differs is learnt by declaring it, which changes nothing
    /// as long as it is there: should somebody delete it between the two, it would be declared. AMQP has no question for
    /// bindings: they are [`Unseen`](State::Unseen), unless what they bind is missing.
    pub async fn plan(&self, broker: &Amqp) -> Result<Plan, SubscribeError> {
        let mut steps = Vec::<(Part<'_>, State)>::new();
        for part in self.parts() {
            let state = match part {
                Part::Exchange(_) | Part::Queue(_) => {
                    match declare::look(broker.admin().await?, broker.server(), part).await? {
                        None => State::Missing,
                        Some(differences) if differences.is_empty() => State::Present,
                        Some(differences) => State::Differs(differences),
                    }
                }
                Part::ToQueue(..) | Part::ToExchange(..) if is_loose(&steps, part) => State::Missing,
                Part::ToQueue(..) | Part::ToExchange(..) => State::Unseen,
            };
            steps.push((part, state));
        }
        let steps = steps.into_iter().map(|(part, state)| Step { what: part.to_string(), state });
        Ok(Plan { steps: steps.collect() })
    }

    /// Declares what is missing and binds everything; the answer is the plan that was carried out.
    ///
    /// Fails with [`Mismatch`](SubscribeErrorKind::Mismatch) before anything is declared where something is there and
    /// declared otherwise, and with [`NotFound`](SubscribeErrorKind::NotFound) where something
    /// [passive](Queue::passive) is missing. Doing it twice is no error. On a broker that is connected with
    /// [`Options::passive`](crate::Options::passive) it declares nothing and is the same as [`verify`](Self::verify).
    pub async fn apply(&self, broker: &Amqp) -> Result<Plan, SubscribeError> {
        let plan = self.plan(broker).await?;
        if broker.is_passive() {
            return plan.verified();
        }
        plan.without_conflicts()?;
        for part in self.parts() {
            declare::declare_part(broker.admin().await?, broker.server(), part).await?;
        }
        Ok(plan)
    }

    /// Fails with [`NotFound`](SubscribeErrorKind::NotFound) where an exchange or a queue is missing, and with
    /// [`Mismatch`](SubscribeErrorKind::Mismatch) where one is declared otherwise; the text names all of them. Declares
    /// nothing. Bindings cannot be seen.
    pub async fn verify(&self, broker: &Amqp) -> Result<Plan, SubscribeError> {
        self.plan(broker).await?.verified()
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        self.exchanges.iter().for_each(|exchange| add_exchange(exchange, &mut parts));
        self.queues.iter().for_each(|queue| add_queue(queue, &mut parts));
        parts
    }
}

/// Whether what it binds, or is bound to, is missing.
fn is_loose(steps: &[(Part<'_>, State)], part: Part<'_>) -> bool {
    let ends = match part {
        Part::Exchange(_) | Part::Queue(_) => return false,
        Part::ToQueue(queue, binding) => [Part::Queue(queue), Part::Exchange(&binding.exchange)],
        Part::ToExchange(exchange, binding) => [Part::Exchange(exchange), Part::Exchange(&binding.exchange)],
    };
    steps.iter().any(|(part, state)| *state == State::Missing && ends.contains(part))
}

/// What [`Topology::plan`] found, in the order in which things are declared. Its `Display` is a line for each.
///
/// ```
/// # fn example(plan: &steadfast_amqp::Plan) {
/// if !plan.is_satisfied() {
///     for step in plan.steps() {
///         println!("{}: {}", step.what(), step.state());
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

/// One exchange, queue or binding of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    what: String,
    state: State,
}

/// How something is on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It is there, as declared here.
    Present,
    /// It is not there.
    Missing,
    /// It is there, and declared otherwise.
    Differs(Vec<Difference>),
    /// A binding: the broker cannot be asked for it. [`Topology::apply`] makes sure of it.
    Unseen,
}

/// An argument or a property that is one thing here and another on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    name: String,
    declared: String,
    actual: String,
}

impl Plan {
    /// All steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether nothing is missing and nothing differs, as far as can be seen.
    pub fn is_satisfied(&self) -> bool {
        self.steps.iter().all(|step| match step.state {
            State::Present | State::Unseen => true,
            State::Missing | State::Differs(_) => false,
        })
    }

    fn verified(self) -> Result<Self, SubscribeError> {
        self.without_conflicts()?;
        let missing: Vec<_> = self.steps.iter().filter(|step| step.state == State::Missing).collect();
        if missing.is_empty() {
            return Ok(self);
        }
        let named: Vec<_> = missing.iter().map(|step| step.what.as_str()).collect();
        let what = format!("verify the topology: missing are {}; declare them", named.join(", "));
        Err(SubscribeError::new(SubscribeErrorKind::NotFound, what))
    }

    fn without_conflicts(&self) -> Result<(), SubscribeError> {
        let differing = self.steps.iter().filter(|step| matches!(step.state, State::Differs(_)));
        let named: Vec<_> = differing.map(ToString::to_string).collect();
        if named.is_empty() {
            return Ok(());
        }
        let what = format!(
            "compare the topology with the broker: {}; delete what differs, or declare it as it is",
            named.join("; ")
        );
        Err(SubscribeError::new(SubscribeErrorKind::Mismatch, what))
    }
}

impl Step {
    /// What it is about: "queue `orders`".
    pub fn what(&self) -> &str {
        &self.what
    }

    /// How it is on the broker.
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl Difference {
    pub(crate) fn new(
        name: impl Into<String>,
        declared: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), declared: declared.into(), actual: actual.into() }
    }

    /// The argument or property: `x-max-length`, `durable`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value here; `none` where there is none.
    pub fn declared(&self) -> &str {
        &self.declared
    }

    /// The value on the broker; `none` where there is none.
    pub fn actual(&self) -> &str {
        &self.actual
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.state)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("present"),
            Self::Missing => f.write_str("missing"),
            Self::Unseen => f.write_str("not to be seen"),
            Self::Differs(differences) => {
                let named: Vec<_> = differences.iter().map(ToString::to_string).collect();
                f.write_str(&named.join(", "))
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is `{}` on the broker and `{}` here", self.name, self.actual, self.declared)
    }
}
