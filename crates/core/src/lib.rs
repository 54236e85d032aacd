//! What a supervised consumer is: handlers, retries, settlement and the supervision tree. Knows no broker.
//!
//! Applications use the crate `steadfast`, which names everything here again. Broker crates use this one.

mod actor;
mod broker;
mod circuit;
mod codec;
mod consumer;
mod dead_letter;
mod delivery;
mod duration;
mod envelope;
mod error;
mod handler;
mod headers;
#[cfg(feature = "health")]
mod health_http;
mod held_back;
mod last_chance;
mod letter;
mod message;
mod middleware;
mod operate;
mod outcome;
mod pipeline;
mod redrive;
mod reply;
mod retry;
#[cfg(test)]
mod scripted;
mod session;
mod settle;
mod shutdown;
mod suspects;
mod telemetry;

pub use actor::{
    Child, ChildStatus, ControlError, Event, EventKind, Health, Kind, Monitor, Phase, Restart,
    RestartIntensity, StartError, Stop, Strategy, SupervisedPublisher, Supervisor, Tree, ractor,
};
pub use broker::{
    Broker, Capabilities, Destination, Outgoing, Publisher, Settler, Source, Subscribe, Subscription,
};
pub use circuit::CircuitBreaker;
pub use codec::Codec;
pub use consumer::{Consumer, OnPanic};
pub use dead_letter::{DeadLetter, Reason};
pub use delivery::{Delivery, Incoming, Origin, Payload, Token};
pub use duration::{DurationExt, parse_duration};
pub use envelope::{Context, Envelope, PublisherExt};
pub use error::{
    BoxError, ConnectError, ConnectErrorKind, OperateError, OperateErrorKind, PublishError, PublishErrorKind,
    SettleError, SettleErrorKind, SubscribeError, SubscribeErrorKind,
};
pub use handler::{Handle, Handler, HandlerFn, Route, handler_fn, reply_fn};
pub use headers::{HeaderError, HeaderValue, Headers, known};
pub use letter::{Filter, Letter, RedriveTo};
pub use message::Message;
pub use middleware::{Attempt, Inner};
pub use operate::{
    ConsumerInspection, Follow, Forward, Forwarded, GroupInspection, Inspection, Operator, Pending, Walk,
};
pub use outcome::{Failure, Outcome, Verdict};
pub use redrive::{End, Journal, Preview, Progress, Redrive, RedriveError, Report};
pub use reply::{FAILED_REPLY, Reply};
pub use retry::{FailureClass, Retry};
pub use settle::Requeue;
pub use shutdown::RunError;
pub use telemetry::Stats;
