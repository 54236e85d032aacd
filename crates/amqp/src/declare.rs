//! Declaring what queues and exchanges say, and finding out in what the broker has it otherwise.
//!
//! Nothing here is ever deleted or changed on the broker: what is declared otherwise is an error that names both values.

use std::sync::Arc;

use lapin::ExchangeKind;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use steadfast_core::{Destination, Source, SubscribeError, SubscribeErrorKind};

use crate::argument::{Argument, Arguments, table};
use crate::connection::{Lane, Live};
use crate::error::{Sort, Trouble, mismatch};
use crate::exchange::{Binding, Exchange};
use crate::parts::{Part, parts_of_queue};
use crate::queue::{Queue, QueueKind};
use crate::topology::Difference;

/// What a queue turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: QueueKind,
    /// One consumer takes, the others wait.
    pub(crate) single: bool,
}

/// Declares what a source means, and says what its queue turned out to be.
pub(crate) async fn declare_source(
    lane: &Lane,
    server: &str,
    source: &Source,
) -> Result<Found, SubscribeError> {
    match source.native::<Queue>() {
        Some(queue) => declare(lane, server, queue, false).await,
        None if source.has_native() => Err(SubscribeError::new(
            SubscribeErrorKind::Unsupported,
            format!(
                "declare queue `{}`: it is described in another broker's words; on RabbitMQ use `Source::queue` or \
                 `amqp::Queue`",
                source.name()
            ),
        )),
        None => declare(lane, server, &Queue::quorum(Arc::clone(source.name())), true).await,
    }
}

/// Makes sure that dead letters have somewhere to go: declares the queue, or finds the exchange.
pub(crate) async fn declare_dead_letters(
    lane: &Lane,
    server: &str,
    destination: &Destination,
    kind: QueueKind,
) -> Result<(), SubscribeError> {
    let Some(exchange) = destination.exchange_name().filter(|name| !name.is_empty()) else {
        let queue = Queue::like(kind, destination.name());
        return declare(lane, server, &queue, true).await.map(drop);
    };
    let what = format!("find the exchange `{exchange}` that dead letters go to");
    let ask = Ask::exchange(&Exchange::passive(exchange), &what)?;
    ask.request(lane).await.map_err(|trouble| trouble.subscribing(&what))
}

/// Declares one queue with its exchanges and bindings. With `lenient`, a durable queue that is there already and declared
/// otherwise is taken as it is.
pub(crate) async fn declare(
    lane: &Lane,
    server: &str,
    queue: &Queue,
    lenient: bool,
) -> Result<Found, SubscribeError> {
    if lane.options().is_passive() {
        return declare_queue(lane, server, &Queue::passive(Arc::clone(&queue.name)), false)
            .await
            .map(|found| Found { single: queue.is_single(), ..found });
    }
    let mut found = Found { kind: queue.kind, single: queue.is_single() };
    for part in parts_of_queue(queue) {
        if let Part::Queue(queue) = part {
            found = declare_queue(lane, server, queue, lenient).await?;
        } else {
            declare_part(lane, server, part).await?;
        }
    }
    Ok(found)
}

/// Declares or binds one thing, as it says and not otherwise.
pub(crate) async fn declare_part(lane: &Lane, server: &str, part: Part<'_>) -> Result<(), SubscribeError> {
    match part {
        Part::Queue(queue) => declare_queue(lane, server, queue, false).await.map(drop),
        Part::Exchange(exchange) => declare_exchange(lane, exchange).await,
        Part::ToQueue(queue, binding) => bind(lane, &Target::Queue(&queue.name), binding).await,
        Part::ToExchange(exchange, binding) => bind(lane, &Target::Exchange(&exchange.name), binding).await,
    }
}

async fn declare_queue(
    lane: &Lane,
    server: &str,
    queue: &Queue,
    lenient: bool,
) -> Result<Found, SubscribeError> {
    let what = format!("declare queue `{}`", queue.name);
    let ask = Ask::queue(queue, server, &what)?;
    let trouble = match ask.request(lane).await {
        Ok(()) => return Ok(Found { kind: queue.kind, single: queue.is_single() }),
        Err(trouble) => trouble,
    };
    if trouble.sort() != Sort::Precondition {
        return Err(trouble.subscribing(what));
    }
    let differences = differences(lane, ask, &trouble).await.map_err(|trouble| trouble.subscribing(&what))?;
    let essential =
        |difference: &Difference| matches!(difference.name(), "durable" | "exclusive" | "auto_delete");
    if differences.is_empty() {
        return Err(trouble.subscribing(what));
    }
    if !lenient || differences.iter().any(essential) {
        return Err(trouble.subscribing(otherwise(&what, "queue", &differences)));
    }
    tracing::info!(queue = &*queue.name, ?differences, "the queue is declared otherwise and taken as it is");
    Ok(taken(queue.kind, &differences))
}

/// What a queue is that was meant to be of type `kind`, and is declared otherwise.
fn taken(kind: QueueKind, differences: &[Difference]) -> Found {
    let actual =
        |name: &str| differences.iter().find(|difference| difference.name() == name).map(Difference::actual);
    let kind = match actual("x-queue-type") {
        None => kind,
        Some("classic") => QueueKind::Classic,
        Some("quorum") => QueueKind::Quorum,
        Some(_) => QueueKind::Passive,
    };
    Found { kind, single: actual("x-single-active-consumer") == Some("true") }
}

async fn declare_exchange(lane: &Lane, exchange: &Exchange) -> Result<(), SubscribeError> {
    let what = format!("declare exchange `{}`", exchange.name);
    let ask = Ask::exchange(exchange, &what)?;
    let Err(trouble) = ask.request(lane).await else { return Ok(()) };
    if trouble.sort() != Sort::Precondition {
        return Err(trouble.subscribing(what));
    }
    let differences = differences(lane, ask, &trouble).await.map_err(|trouble| trouble.subscribing(&what))?;
    if differences.is_empty() {
        return Err(trouble.subscribing(what));
    }
    Err(trouble.subscribing(otherwise(&what, "exchange", &differences)))
}

/// Both values of everything that differs, and the way out.
pub(crate) fn otherwise(what: &str, thing: &str, differences: &[Difference]) -> String {
    let named: Vec<_> = differences.iter().map(ToString::to_string).collect();
    format!("{what}: {}; delete the {thing}, or declare it as it is", named.join(", "))
}

/// Whether it is there, and in what it is declared otherwise; none where it is not there.
///
/// What is there is asked for once more with what the broker says to have, until nothing differs: that changes nothing.
pub(crate) async fn look(
    lane: &Lane,
    server: &str,
    part: Part<'_>,
) -> Result<Option<Vec<Difference>>, SubscribeError> {
    let what = format!("look for {part}");
    let (ask, passive) = match part {
        Part::Queue(queue) => (Ask::queue(queue, server, &what)?, queue.kind == QueueKind::Passive),
        Part::Exchange(exchange) => (Ask::exchange(exchange, &what)?, exchange.kind.is_none()),
        Part::ToQueue(..) | Part::ToExchange(..) => return Ok(Some(Vec::new())),
    };
    match (Ask { passive: true, ..ask.clone() }).request(lane).await {
        Ok(()) if passive => return Ok(Some(Vec::new())),
        Ok(()) => {}
        Err(trouble) if trouble.sort() == Sort::NotFound => return Ok(None),
        Err(trouble) => return Err(trouble.subscribing(what)),
    }
    match ask.request(lane).await {
        Ok(()) => Ok(Some(Vec::new())),
        Err(trouble) if trouble.sort() == Sort::Precondition => {
            let found =
                differences(lane, ask, &trouble).await.map_err(|trouble| trouble.subscribing(&what))?;
            if found.is_empty() { Err(trouble.subscribing(what)) } else { Ok(Some(found)) }
        }
        Err(trouble) => Err(trouble.subscribing(what)),
    }
}

/// All that differs. The broker names one difference at a time, so each is taken over and it is asked again.
async fn differences(lane: &Lane, mut ask: Ask, first: &Trouble) -> Result<Vec<Difference>, Trouble> {
    let mut found = Vec::<Difference>::new();
    let mut next = Difference::read(first.text());
    while let Some(difference) = next {
        if found.iter().any(|known| known.name() == difference.name()) {
            break;
        }
        ask.take_over(&difference);
        found.push(difference);
        next = match ask.request(lane).await {
            Ok(()) => None,
            Err(trouble) if trouble.sort() == Sort::Precondition => Difference::read(trouble.text()),
            Err(trouble) => return Err(trouble),
        };
    }
    Ok(found)
}

impl Difference {
    fn read(text: &str) -> Option<Self> {
        mismatch(text).map(|found| Self::new(found.argument, found.ours, found.theirs))
    }
}

/// One `queue.declare` or `exchange.declare`.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the bits of the frame, and not states")]
struct Ask {
    name: ShortString,
    /// None: a queue.
    exchange: Option<ExchangeKind>,
    passive: bool,
    durable: bool,
    auto_delete: bool,
    internal: bool,
    arguments: Arguments,
}

impl Ask {
    fn queue(queue: &Queue, server: &str, what: &str) -> Result<Self, SubscribeError> {
        queue.check().map_err(|why| unsupported(format!("{what}: {why}")))?;
        Ok(Self {
            name: short(&queue.name, what)?,
            exchange: None,
            passive: queue.kind == QueueKind::Passive,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: queue.arguments(server),
        })
    }

    fn exchange(exchange: &Exchange, what: &str) -> Result<Self, SubscribeError> {
        if exchange.name.is_empty() {
            let why =
                "the default exchange is always there, and nothing can be bound to it; name another one";
            return Err(unsupported(format!("{what}: {why}")));
        }
        Ok(Self {
            name: short(&exchange.name, what)?,
            exchange: Some(exchange.kind.clone().unwrap_or_default()),
            passive: exchange.kind.is_none(),
            durable: true,
            auto_delete: exchange.auto_delete,
            internal: exchange.internal,
            arguments: exchange.arguments(),
        })
    }

    async fn request(&self, lane: &Lane) -> Result<(), Trouble> {
        let Self { passive, durable, auto_delete, internal, .. } = *self;
        let arguments = if passive { FieldTable::default() } else { table(&self.arguments) };
        let (live, channel) = lane.channel().await?;
        if let Some(kind) = self.exchange.clone() {
            let options =
                ExchangeDeclareOptions { passive, durable, auto_delete, internal, ..Default::default() };
            live.request(channel.exchange_declare(self.name.clone(), kind, options, arguments)).await?;
        } else {
            let options = QueueDeclareOptions { passive, durable, auto_delete, ..Default::default() };
            live.request(channel.queue_declare(self.name.clone(), options, arguments)).await?;
        }
        close(&live, &channel).await;
        Ok(())
    }

    /// Says from now on what the broker has.
    fn take_over(&mut self, difference: &Difference) {
        let actual = difference.actual();
        match difference.name() {
            "durable" => self.durable = actual == "true",
            "auto_delete" => self.auto_delete = actual == "true",
            "internal" => self.internal = actual == "true",
            "type" if self.exchange.is_some() => self.exchange = Some(kind(actual)),
            name if actual == "none" || (name, actual) == ("x-queue-type", "classic") => {
                self.arguments.remove(name);
            }
            name => {
                self.arguments.insert(name.to_owned(), Argument::read(actual));
            }
        }
    }
}

fn kind(name: &str) -> ExchangeKind {
    match name {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.to_owned()),
    }
}

/// What is bound to an exchange.
enum Target<'a> {
    Queue(&'a str),
    Exchange(&'a str),
}

async fn bind(lane: &Lane, target: &Target<'_>, binding: &Binding) -> Result<(), SubscribeError> {
    let Binding { exchange, routing_key, arguments, unusable } = binding;
    let (thing, name) = match target {
        Target::Queue(name) => ("queue", name),
        Target::Exchange(name) => ("exchange", name),
    };
    let what = format!("bind {thing} `{name}` to exchange `{}` by `{routing_key}`", exchange.name);
    if let Some(why) = unusable {
        return Err(unsupported(format!("{what}: {why}, and only numbers, texts and flags are compared")));
    }
    let (to, from, key) = (short(name, &what)?, short(&exchange.name, &what)?, short(routing_key, &what)?);
    let failed = |trouble: Trouble| trouble.subscribing(&what);
    let (live, channel) = lane.channel().await.map_err(failed)?;
    let arguments = table(arguments);
    match target {
        Target::Queue(_) => {
            let bound = channel.queue_bind(to, from, key, QueueBindOptions::default(), arguments);
            live.request(bound).await.map_err(failed)?;
        }
        Target::Exchange(_) => {
            let bound = channel.exchange_bind(to, from, key, ExchangeBindOptions::default(), arguments);
            live.request(bound).await.map_err(failed)?;
        }
    }
    close(&live, &channel).await;
    Ok(())
}

/// How many messages wait in the queue; none where it cannot be asked.
pub(crate) async fn ready_messages(lane: &Lane, queue: &str) -> Option<u64> {
    let name = short(queue, "count the messages of a queue").ok()?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let (live, channel) = lane.channel().await.ok()?;
    let found = live.request(channel.queue_declare(name, options, FieldTable::default())).await.ok()?;
    close(&live, &channel).await;
    Some(u64::from(found.message_count()))
}

/// A channel that did its work goes; if it cannot be closed it went with its connection.
async fn close(live: &Live, channel: &lapin::Channel) {
    let _ = live.request(channel.close(200, "done".into())).await;
}

/// A name in AMQP has at most 255 bytes.
pub(crate) fn short(name: &str, what: &str) -> Result<ShortString, SubscribeError> {
    ShortString::try_new(name)
        .map_err(|error| unsupported(format!("{what}: the name is too long")).with_source(error))
}

fn unsupported(what: String) -> SubscribeError {
    SubscribeError::new(SubscribeErrorKind::Unsupported, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_taken_as_it_is_is_known_for_what_it_is() {
        let other = |name, actual| Difference::new(name, "ours", actual);
        let found = |differences: &[Difference]| taken(QueueKind::Quorum, differences);
        assert_eq!(found(&[other("x-max-length", "5")]), Found { kind: QueueKind::Quorum, single: false });
        let differences = [other("x-queue-type", "classic"), other("x-single-active-consumer", "true")];
        assert_eq!(found(&differences), Found { kind: QueueKind::Classic, single: true });
        assert_eq!(found(&[other("x-queue-type", "stream")]).kind, QueueKind::Passive);
    }
}
