//! What is promised: the list.

use std::fmt;

use futures_util::future::BoxFuture;
use steadfast_core::Capabilities;

use crate::properties::{consumer, dead_letter, deliver, flow, publish, redeliver, release, retry, settle};
use crate::report::Violation;
use crate::trial::Trial;

/// One promise, and how it is tried.
#[derive(Clone, Copy)]
pub struct Property {
    name: &'static str,
    promise: &'static str,
    needs: Need,
    run: Run,
}

type Run = for<'a> fn(&'a Trial<'a>) -> BoxFuture<'a, Result<(), Violation>>;

impl Property {
    const fn new(name: &'static str, promise: &'static str, run: Run) -> Self {
        Self { name, promise, needs: Need::Nothing, run }
    }

    const fn needs_a(mut self, need: Need) -> Self {
        self.needs = need;
        self
    }

    /// One word or few, as a test is named.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What is promised, in one sentence.
    pub const fn promise(&self) -> &'static str {
        self.promise
    }

    /// What a broker has to be able to do for this to be tried.
    pub const fn needs(&self) -> Need {
        self.needs
    }

    pub(crate) fn run<'a>(&self, trial: &'a Trial<'a>) -> BoxFuture<'a, Result<(), Violation>> {
        (self.run)(trial)
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Property")
            .field("name", &self.name)
            .field("promise", &self.promise)
            .finish_non_exhaustive()
    }
}

/// What a broker may or may not be able to do: a field of [`Capabilities`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Nothing beyond the contract.
    Nothing,
    /// [`Capabilities::delivery_count`].
    DeliveryCount,
    /// [`Capabilities::fields`].
    Fields,
    /// [`Capabilities::groups`].
    Groups,
    /// [`Capabilities::routable_check`].
    RoutableCheck,
    /// [`Capabilities::typed_headers`].
    TypedHeaders,
}

impl Need {
    /// Whether a broker that can do this much has it.
    pub fn met_by(self, capabilities: &Capabilities) -> bool {
        match self {
            Self::Nothing => true,
            Self::DeliveryCount => capabilities.delivery_count,
            Self::Fields => capabilities.fields,
            Self::Groups => capabilities.groups,
            Self::RoutableCheck => capabilities.routable_check,
            Self::TypedHeaders => capabilities.typed_headers,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "need",
            Self::DeliveryCount => "count of deliveries (Capabilities::delivery_count)",
            Self::Fields => "payload of named fields (Capabilities::fields)",
            Self::Groups => "consumer groups (Capabilities::groups)",
            Self::RoutableCheck => "check that a destination exists (Capabilities::routable_check)",
            Self::TypedHeaders => "headers that are not text (Capabilities::typed_headers)",
        })
    }
}

/// Every property, in the order of a message's life.
pub const PROPERTIES: &[Property] = &[
    Property::new(
        "bodies",
        "every published message arrives exactly once, its body equal byte by byte",
        |trial| Box::pin(deliver::bodies(trial)),
    ),
    Property::new(
        "properties",
        "properties and headers arrive as they were published, and those not set are not there",
        |trial| Box::pin(deliver::properties(trial)),
    ),
    Property::new("typed_headers", "a header arrives as the type it was published as", |trial| {
        Box::pin(deliver::typed_headers(trial))
    })
    .needs_a(Need::TypedHeaders),
    Property::new("fields", "a payload of named fields arrives as these fields, in their order", |trial| {
        Box::pin(deliver::fields(trial))
    })
    .needs_a(Need::Fields),
    Property::new("acked", "what was acknowledged is not delivered again to a later subscription", |trial| {
        Box::pin(settle::acked(trial))
    }),
    Property::new(
        "out_of_order",
        "an acknowledgment settles the one delivery it is for, in whatever order they come",
        |trial| Box::pin(settle::out_of_order(trial)),
    ),
    Property::new(
        "finished",
        "what was settled before finish() returned stays settled when the connection goes away right after",
        |trial| Box::pin(settle::finished(trial)),
    ),
    Property::new(
        "settled_late",
        "settling a delivery whose subscription has ended does nothing to the consumer that has it now",
        |trial| Box::pin(settle::settled_late(trial)),
    ),
    Property::new(
        "redelivered",
        "what is unsettled when a subscription ends comes back, marked as redelivered and otherwise as it was",
        |trial| Box::pin(redeliver::redelivered(trial)),
    ),
    Property::new("counted", "each return of an unsettled delivery is counted, from 0", |trial| {
        Box::pin(redeliver::counted(trial))
    })
    .needs_a(Need::DeliveryCount),
    Property::new(
        "connection_lost",
        "what is unsettled when the connection is closed comes back to another connection",
        |trial| Box::pin(redeliver::connection_lost(trial)),
    ),
    Property::new(
        "room",
        "poll_next gives at least one delivery and at most as many as there is room for",
        |trial| Box::pin(flow::room(trial)),
    ),
    Property::new("max_in_flight", "no more than max_in_flight deliveries are unsettled at once", |trial| {
        Box::pin(flow::max_in_flight(trial))
    }),
    Property::new(
        "narrow",
        "a narrow subscription holds nothing beyond what it handed out, and all can be had when it is wide again",
        |trial| Box::pin(flow::narrow(trial)),
    )
    .needs_a(Need::DeliveryCount),
    Property::new(
        "competing",
        "of two subscriptions to one source each message reaches exactly one",
        |trial| Box::pin(flow::competing(trial)),
    ),
    Property::new(
        "stopped",
        "after stop() what was handed out can still be settled, and all else is there for others at once, unharmed",
        |trial| Box::pin(flow::stopped(trial)),
    ),
    Property::new(
        "ends",
        "a subscription whose connection was closed says so by an error, and is never pending for ever",
        |trial| Box::pin(flow::ends(trial)),
    ),
    Property::new("closed", "calls on a closed connection fail, and soon", |trial| {
        Box::pin(flow::closed(trial))
    }),
    Property::new(
        "released",
        "what is released is delivered again at once, to anyone, without an attempt counted",
        |trial| Box::pin(release::released(trial)),
    ),
    Property::new(
        "retry_waits",
        "a requeued message comes back after its own delay: not before, and later by no more than the stated precision",
        |trial| Box::pin(retry::waits(trial)),
    ),
    Property::new(
        "retry_keeps",
        "a requeued message has the requeue's headers set over its own, and all else as it was",
        |trial| Box::pin(retry::keeps(trial)),
    ),
    Property::new("retry_at_once", "a message requeued with no delay comes back at once", |trial| {
        Box::pin(retry::at_once(trial))
    }),
    Property::new(
        "retry_counts",
        "attempts are counted in the message, over any number of retries",
        |trial| Box::pin(retry::counts(trial)),
    ),
    Property::new(
        "retry_is_one",
        "a requeue leaves one copy: the original is gone when it is done",
        |trial| Box::pin(retry::is_one(trial)),
    ),
    Property::new(
        "retry_in_group",
        "a requeued message comes back to its own consumer group alone",
        |trial| Box::pin(retry::in_group(trial)),
    )
    .needs_a(Need::Groups),
    Property::new("snoozed", "a requeue without headers counts no attempt and changes nothing", |trial| {
        Box::pin(retry::snoozed(trial))
    }),
    Property::new(
        "dead_lettered",
        "a dead letter is in its destination with the record's headers and its own body, and gone from the source",
        |trial| Box::pin(dead_letter::dead_lettered(trial)),
    ),
    Property::new(
        "many_publishers",
        "of a thousand messages published at the same time each is safe when its send returns",
        |trial| Box::pin(publish::many(trial)),
    ),
    Property::new(
        "unroutable",
        "a message to a destination that does not exist is refused as unroutable",
        |trial| Box::pin(publish::unroutable(trial)),
    )
    .needs_a(Need::RoutableCheck),
    Property::new("declared_twice", "declaring a source twice is no error and loses nothing", |trial| {
        Box::pin(publish::declared_twice(trial))
    }),
    Property::new(
        "foreign_source",
        "a source with another broker's own value attached is refused as unsupported",
        |trial| Box::pin(publish::foreign_source(trial)),
    ),
    Property::new(
        "handled",
        "a supervised consumer handles and acknowledges every message exactly once",
        |trial| Box::pin(consumer::handled(trial)),
    ),
    Property::new(
        "attempts",
        "a message that always fails is tried as often as its policy says, then dead-lettered with its attempts",
        |trial| Box::pin(consumer::attempts(trial)),
    ),
    Property::new(
        "undecodable",
        "a body that does not decode is dead-lettered at once, its bytes as they were",
        |trial| Box::pin(consumer::undecodable(trial)),
    ),
    Property::new(
        "drained",
        "a drain finishes what is in flight and gives back the rest: nothing is handled twice, nothing is lost",
        |trial| Box::pin(consumer::drained(trial)),
    ),
];
