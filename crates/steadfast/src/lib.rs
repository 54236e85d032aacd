#![doc = include_str!("../../../README.md")]

mod connect;
mod private;

pub use connect::{connect, connect_lazy};
pub use steadfast_core::{
    Attempt, BoxError, Broker, Capabilities, Child, ChildStatus, CircuitBreaker, Codec, ConnectError,
    ConnectErrorKind, Consumer, ConsumerInspection, Context, ControlError, DeadLetter, Delivery, Destination,
    DurationExt, End, Envelope, Event, EventKind, Failure, FailureClass, Filter, Follow, Forward, Forwarded,
    GroupInspection, Handle, Handler, HandlerFn, HeaderError, HeaderValue, Headers, Health, Incoming, Inner,
    Inspection, Journal, Kind, Letter, Message, Monitor, OnPanic, OperateError, OperateErrorKind, Operator,
    Origin, Outcome, Outgoing, Payload, Pending, Phase, Preview, Progress, PublishError, PublishErrorKind,
    Publisher, PublisherExt, Reason, Redrive, RedriveError, RedriveTo, Reply, Report, Requeue, Restart,
    RestartIntensity, Retry, RunError, SettleError, SettleErrorKind, Settler, Source, StartError, Stats,
    Stop, Strategy, Subscribe, SubscribeError, SubscribeErrorKind, Subscription, SupervisedPublisher,
    Supervisor, Token, Tree, Verdict, Walk, handler_fn, known, parse_duration, ractor, reply_fn,
};
#[cfg(feature = "macros")]
pub use steadfast_macros::{Handler, Message, handler};

/// RabbitMQ: what only it can do.
#[cfg(feature = "amqp")]
pub use steadfast_amqp as amqp;
/// The broker in your process.
#[cfg(feature = "embedded")]
pub use steadfast_embedded as embedded;
/// Redis Streams: what only they can do.
#[cfg(feature = "streams")]
pub use steadfast_streams as streams;

/// The result of `main`: any error, with its chain.
pub type Result<T, E = BoxError> = std::result::Result<T, E>;

/// What most files that define or run handlers need.
pub mod prelude {
    pub use crate::{
        Broker, Child, Codec, Consumer, Context, Destination, DurationExt, Envelope, Failure, Handle,
        Handler, Message, OnPanic, Publisher, PublisherExt, Restart, RestartIntensity, Retry, Source,
        Strategy, Supervisor, Tree, handler_fn,
    };
    #[cfg(feature = "macros")]
    pub use steadfast_macros::handler;
}

/// For generated code only; no promise is made about it.
#[doc(hidden)]
pub mod __private {
    pub use crate::private::{Body, HandlerResult, KeyOf, context};
    pub use std::borrow::Cow;
    pub use std::option::Option;
    pub use std::prelude::v1::derive;
    pub use std::primitive::{str, u32};
    pub use std::result::Result;
    pub use std::time::Duration;
    pub use std::vec;
    pub use std::vec::Vec;
    pub use std::{clone::Clone, fmt::Debug, marker::Copy};
    pub use steadfast_core::{Context, Failure, Handle, Handler, Message, Route};
}
