//! Typed handlers, and the table that finds the one for a message.
//!
//! Owns dispatch by type name and decoding into the handler's type. Knows nothing of attempts or settlement.

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::codec::{self, Codec};
use crate::delivery::Incoming;
use crate::envelope::Context;
use crate::error::BoxError;
use crate::headers::known;
use crate::message::Message;
use crate::outcome::{Cause, Failure};
use crate::reply::Reply;

/// Handles messages of one type. Implement it once for each type that the struct handles.
///
/// Any error is a failed attempt, tried again by the consumer's [`Retry`](crate::Retry) policy; [`Failure`]'s
/// constructors say otherwise. The same message can come more than once (at-least-once): handle it idempotently, for
/// example by [`Context::message_id`]. A panic counts as a failed attempt.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast_core::{Context, Failure, Handle, Message};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced { id: u64 }
/// impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
///
/// struct Billing;
/// impl Handle<OrderPlaced> for Billing {
///     async fn handle(&self, order: OrderPlaced, cx: &Context) -> Result<(), Failure> {
///         println!("order {} on attempt {}", order.id, cx.attempt());
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no handler for `{M}`",
    label = "`#[handler(..)]` names `{M}`, and `Handle<{M}>` is not implemented",
    note = "add `impl Handle<{M}> for {Self} {{ async fn handle(&self, message: {M}, cx: &Context) -> Result<(), Failure> {{ .. }} }}`"
)]
pub trait Handle<M: Message>: Send + Sync + 'static {
    /// Handles one message.
    fn handle(&self, message: M, cx: &Context) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The last chance: `message` goes to the dead letters, because of `failure`. Called before it is stored there, to undo
    /// what was begun or to tell somebody. Default: nothing.
    ///
    /// It cannot keep the message from the dead letters, and cannot lose it: an error, a panic, or more time than one
    /// attempt may take (10 s where that has no limit) is logged as `message.on_dead_failed` and written into the record as
    /// `steadfast-on-dead-error`, and the dead letter goes its way. A panic brings a fresh handler, as any other.
    ///
    /// It is called at least once, as `handle` is: a process that dies in between calls it again. It is not called for what
    /// cannot be decoded, for a message that takes its process down, and where headers make no sense.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use steadfast_core::{Context, Failure, Handle, Message};
    /// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
    /// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
    /// struct Billing;
    /// impl Handle<OrderPlaced> for Billing {
    ///     async fn handle(&self, order: OrderPlaced, _: &Context) -> Result<(), Failure> {
    ///         Err(Failure::reject(format!("order {} was never placed", order.id)))
    ///     }
    ///
    ///     async fn on_dead(&self, order: OrderPlaced, failure: &Failure, cx: &Context) -> Result<(), Failure> {
    ///         eprintln!("order {} is dead after {} attempts: {failure}", order.id, cx.attempt());
    ///         Ok(())
    ///     }
    /// }
    /// ```
    fn on_dead(
        &self,
        message: M,
        failure: &Failure,
        cx: &Context,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (message, failure, cx);
        std::future::ready(Ok(()))
    }
}

/// All that a handler struct handles; written by `#[derive(Handler)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    note = "a handler is a struct with `#[derive(Handler)]`, `#[handler(TheMessage)]` and `impl Handle<TheMessage>`, or an `async fn` with `#[handler]`; for a closure there is `handler_fn`"
)]
pub trait Handler: Send + Sync + Sized + 'static {
    /// One route for each message type.
    fn routes() -> Vec<Route<Self>>;

    /// Longest that one attempt may take; then it counts as failed. Default: no limit.
    fn timeout() -> Option<Duration> {
        None
    }

    /// Whether it blocks its thread (a synchronous client, heavy computation): then each call runs on a thread of the
    /// blocking pool. Default false.
    fn blocking() -> bool {
        false
    }
}

/// How messages of one type reach a handler.
pub struct Route<H> {
    name: &'static str,
    version: u32,
    prepare: fn(&Arc<H>, &Incoming, Codec, Context) -> Result<Call, BoxError>,
    last_chance: PrepareLast<H>,
}

type PrepareLast<H> = fn(&Arc<H>, &Incoming, Codec, Context, Arc<Failure>) -> Result<Call, BoxError>;

impl<H> Route<H> {
    /// The route of messages of type `M` to their [`Handle`] implementation.
    pub fn to<M: Message>() -> Self
    where
        H: Handle<M>,
    {
        Self {
            name: M::NAME,
            version: M::VERSION,
            prepare: prepare::<H, M>,
            last_chance: last_chance::<H, M>,
        }
    }
}

impl<H> fmt::Debug for Route<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{}", self.name, self.version)
    }
}

/// A decoded message bound to its handler, not started yet. It does not panic: where the handler does, it fails with
/// [`Cause::Panic`].
pub(crate) type Call = BoxFuture<'static, Result<(), Failure>>;

fn prepare<H: Handle<M>, M: Message>(
    handler: &Arc<H>,
    incoming: &Incoming,
    codec: Codec,
    cx: Context,
) -> Result<Call, BoxError> {
    let message: M = codec::decode(incoming, codec)?;
    let handler = Arc::clone(handler);
    Ok(caught(async move { handler.handle(message, &cx).await }))
}

fn last_chance<H: Handle<M>, M: Message>(
    handler: &Arc<H>,
    incoming: &Incoming,
    codec: Codec,
    cx: Context,
    failure: Arc<Failure>,
) -> Result<Call, BoxError> {
    let message: M = codec::decode(incoming, codec)?;
    let handler = Arc::clone(handler);
    Ok(caught(async move { handler.on_dead(message, &failure, &cx).await }))
}

/// A panic is caught here, where it has the fewest frames to unwind: each of them costs.
fn caught(call: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Call {
    let caught = AssertUnwindSafe(call).catch_unwind();
    Box::pin(caught.map(|result| result.unwrap_or_else(|panic| Err(panicked(&*panic)))))
}

/// A handler whose type no longer matters.
pub(crate) trait Dispatch: Send + Sync {
    /// Finds the route and decodes; the failure is poison, for the dead letters.
    fn prepare(&self, incoming: &Incoming, codec: Codec, cx: Context) -> Result<Call, Failure>;

    /// The same for its [`on_dead`](Handle::on_dead).
    fn last_chance(
        &self,
        incoming: &Incoming,
        codec: Codec,
        cx: Context,
        failure: Arc<Failure>,
    ) -> Result<Call, Failure>;
}

pub(crate) struct Routed<H> {
    handler: Arc<H>,
    routes: Vec<Route<H>>,
}

impl<H: Handler> Routed<H> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler: Arc::new(handler), routes: H::routes() }
    }

    fn route(&self, incoming: &Incoming) -> Result<&Route<H>, Failure> {
        let Some(name) = incoming.message_type.as_deref() else {
            return match self.routes.as_slice() {
                [only] => Ok(only),
                _ => Err(self.unknown("the message names no type")),
            };
        };
        let mut named = self.routes.iter().filter(|route| route.name == name).peekable();
        let Some(first) = named.peek().copied() else {
            return Err(self.unknown(&format!("no handler for message type {name:?}")));
        };
        let version = incoming.headers.int(known::VERSION).ok().flatten();
        Ok(named.find(|route| version == Some(i64::from(route.version))).unwrap_or(first))
    }

    fn unknown(&self, what: &str) -> Failure {
        let names = self.routes.iter().map(|route| route.name).collect::<Vec<_>>().join(", ");
        let way_out = "set the AMQP property `type`, or the header `steadfast-type`, to one of";
        Failure::poison(Cause::UnknownType, format!("{what}; {way_out}: {names}"))
    }
}

impl<H: Handler> Dispatch for Routed<H> {
    fn prepare(&self, incoming: &Incoming, codec: Codec, cx: Context) -> Result<Call, Failure> {
        let route = self.route(incoming)?;
        decoded(route, || (route.prepare)(&self.handler, incoming, codec, cx))
    }

    fn last_chance(
        &self,
        incoming: &Incoming,
        codec: Codec,
        cx: Context,
        failure: Arc<Failure>,
    ) -> Result<Call, Failure> {
        let route = self.route(incoming)?;
        decoded(route, || (route.last_chance)(&self.handler, incoming, codec, cx, failure))
    }
}

/// A hand-written Deserialize may panic, and a hostile body must not take the consumer with it.
fn decoded<H>(route: &Route<H>, decode: impl FnOnce() -> Result<Call, BoxError>) -> Result<Call, Failure> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|panic| Err(format!("decoding panicked: {}", panic_text(&*panic)).into()))
        .map_err(|error| Failure::poison(Cause::Undecodable, Undecodable { name: route.name, error }))
}

/// The failure that a panic is.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    Failure::panic(panic_text(panic))
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no text)".to_owned())
}

#[derive(Debug)]
struct Undecodable {
    name: &'static str,
    error: BoxError,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "body does not decode as {:?}", self.name)
    }
}

impl std::error::Error for Undecodable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

/// A handler made of a closure over one message type. It gets the [`Context`] by value.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast_core::{Consumer, Context, Message, Source, handler_fn};
///
/// #[derive(Serialize, Deserialize)]
/// struct Ping { n: u64 }
/// impl Message for Ping { const NAME: &'static str = "ping"; }
///
/// let consumer = Consumer::new("pings", Source::queue("pings"))
///     .handler(|| handler_fn(|ping: Ping, _cx: Context| async move {
///         println!("ping {}", ping.n);
///         Ok(())
///     }));
/// # let _ = consumer;
/// ```
pub fn handler_fn<M, F, Fut>(function: F) -> HandlerFn<M, F>
where
    M: Message,
    F: Fn(M, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    HandlerFn { function, message: PhantomData }
}

/// The same for a closure that answers: what it returns in `Ok` is the [`Reply`].
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast_core::{Consumer, Context, Message, Source, reply_fn};
///
/// #[derive(Serialize, Deserialize)]
/// struct Price { item: String }
/// impl Message for Price { const NAME: &'static str = "price"; }
///
/// #[derive(Serialize, Deserialize)]
/// struct Quote { cents: u64 }
/// impl Message for Quote { const NAME: &'static str = "quote"; }
///
/// let consumer = Consumer::new("prices", Source::queue("prices"))
///     .handler(|| reply_fn(|_: Price, _: Context| async { Ok(Quote { cents: 995 }) }));
/// # let _ = consumer;
/// ```
pub fn reply_fn<M, F, Fut, R>(function: F) -> HandlerFn<M, F>
where
    M: Message,
    F: Fn(M, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    R: Reply,
{
    HandlerFn { function, message: PhantomData }
}

/// What [`handler_fn`] and [`reply_fn`] make.
pub struct HandlerFn<M, F> {
    function: F,
    message: PhantomData<fn(M)>,
}

impl<M, F> fmt::Debug for HandlerFn<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handler_fn({})", std::any::type_name::<M>())
    }
}

impl<M, F, Fut, R> Handle<M> for HandlerFn<M, F>
where
    M: Message,
    F: Fn(M, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    R: Reply,
{
    async fn handle(&self, message: M, cx: &Context) -> Result<(), Failure> {
        (self.function)(message, cx.clone()).await?.reply(cx).await
    }
}

impl<M, F, Fut, R> Handler for HandlerFn<M, F>
where
    M: Message,
    F: Fn(M, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    R: Reply,
{
    fn routes() -> Vec<Route<Self>> {
        vec![Route::to::<M>()]
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::delivery::Origin;

    #[derive(Serialize, Deserialize)]
    struct A {
        a: u8,
    }
    #[derive(Serialize, Deserialize)]
    struct A2 {
        a2: u8,
    }
    #[derive(Serialize, Deserialize)]
    struct B {}
    impl Message for A {
        const NAME: &'static str = "a";
    }
    impl Message for A2 {
        const NAME: &'static str = "a";
        const VERSION: u32 = 2;
    }
    impl Message for B {
        const NAME: &'static str = "b";
    }

    struct Both;
    impl Handle<A> for Both {
        async fn handle(&self, _: A, _: &Context) -> Result<(), Failure> {
            Ok(())
        }
    }
    impl Handle<A2> for Both {
        async fn handle(&self, _: A2, _: &Context) -> Result<(), Failure> {
            Ok(())
        }
    }
    impl Handle<B> for Both {
        async fn handle(&self, _: B, _: &Context) -> Result<(), Failure> {
            Err(fmt::Error.into())
        }
    }
    impl Handler for Both {
        fn routes() -> Vec<Route<Self>> {
            vec![Route::to::<A>(), Route::to::<A2>(), Route::to::<B>()]
        }
    }

    fn incoming(message_type: Option<&str>, body: &'static str) -> Incoming {
        let mut incoming = Incoming::new(body.as_bytes(), Origin::default());
        incoming.message_type = message_type.map(str::to_owned);
        incoming
    }

    fn prepare(incoming: &Incoming) -> Result<Call, String> {
        let cx = Context::detached(Arc::new(incoming.clone()));
        Routed::new(Both).prepare(incoming, Codec::Json, cx).map_err(|failure| failure.chain())
    }

    #[tokio::test]
    async fn type_and_version_choose_the_route() {
        assert!(prepare(&incoming(Some("a"), r#"{"a":1}"#)).is_ok());
        assert!(prepare(&incoming(Some("a"), r#"{"a2":1}"#)).is_err());
        let mut second = incoming(Some("a"), r#"{"a2":1}"#);
        second.headers.set(known::VERSION, 2_u32);
        assert!(prepare(&second).is_ok());
        let call = prepare(&incoming(Some("b"), "{}")).expect("decodes");
        assert!(call.await.is_err());
    }

    #[test]
    fn what_cannot_be_handled_says_why_and_what_to_do() {
        let error = prepare(&incoming(Some("c"), "{}")).err().expect("unknown");
        assert!(error.contains("\"c\"") && error.contains("a, a, b"), "{error}");
        let error = prepare(&incoming(None, "{}")).err().expect("no type");
        assert!(error.contains("names no type") && error.contains("steadfast-type"), "{error}");
        let error = prepare(&incoming(Some("a"), "{")).err().expect("broken");
        assert!(error.contains("does not decode as \"a\"") && error.contains("EOF"), "{error}");
    }
}
