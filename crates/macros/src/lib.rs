//! `derive(Message)`, `derive(Handler)` and `#[handler]` for Steadfast.
//!
//! Use them through the crate `steadfast`, which names them again; what they write names only
//! `::steadfast::__private`, or the path that `crate = ..` gives in its place.
//!
//! - `message.rs`: a type's name, version and destination, from its attribute; `key.rs`: the field that is its key
//! - `handler.rs`: a struct's routes, from its attribute
//! - `function.rs`: a free function, made into a handler of one route
//! - `attr.rs`: what the attributes share: options, their values, and the sentences that refuse them
//!
//! Everything that can be refused here is refused here, at the place in the user's code where the change is due.
//! What only the types know is left to the compiler, under spans that point to the same places.

mod attr;
mod function;
mod handler;
mod key;
mod message;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a type a message: implements `Message`, from the attribute `#[message(..)]`.
///
/// | option | meaning | default |
/// |---|---|---|
/// | `name = "order.placed"` | the name on the wire; it chooses the handler | the type's name in lower case, dotted: `OrderPlaced` is `order.placed` |
/// | `version = 2` | the version of the shape, from 1 | 1 |
/// | `key = customer` | the field that orders and partitions; also `customer.id`, `0`, `"customer.id"` | no key |
/// | `to = "orders"` | the queue or stream that it is published to | the one named as the type |
/// | `crate = my_crate::steadfast` | where the crate `steadfast` is, when you re-export it | `::steadfast` |
///
/// A key is text (borrowed, without a copy), anything that implements `Display`, or an `Option` of either, where `None`
/// means no key. Give the name if the Rust name may change: messages under way keep the old one.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast::prelude::*;
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(name = "order.placed", version = 2, key = customer, to = "orders")]
/// struct OrderPlaced { id: u64, customer: String }
///
/// assert_eq!(OrderPlaced::NAME, "order.placed");
/// assert_eq!(OrderPlaced::VERSION, 2);
/// assert_eq!(OrderPlaced::DESTINATION, Some("orders"));
/// let order = OrderPlaced { id: 7, customer: "ada".into() };
/// assert_eq!(order.key().as_deref(), Some("ada"));
///
/// #[derive(Serialize, Deserialize, Message)]
/// struct InvoicePaid { id: u64 }
///
/// assert_eq!(InvoicePaid::NAME, "invoice.paid");
/// ```
#[proc_macro_derive(Message, attributes(message))]
pub fn derive_message(input: TokenStream) -> TokenStream {
    message::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Makes a struct a handler: implements `Handler`, with a route to each message type that `#[handler(..)]` names.
///
/// The struct implements `Handle<M>` for each of them, and in it, where dead letters concern it, `on_dead`. The attribute stands below the derive.
///
/// | option | meaning | default |
/// |---|---|---|
/// | `OrderPlaced, OrderCancelled` | the message types, at least one | – |
/// | `timeout = "5s"` | longest that one attempt may take: a whole number and `ms`, `s`, `m` or `h` | no limit |
/// | `blocking` | it blocks its thread: each call runs on a thread of the blocking pool | off |
/// | `crate = my_crate::steadfast` | where the crate `steadfast` is, when you re-export it | `::steadfast` |
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast::prelude::*;
///
/// #[derive(Serialize, Deserialize, Message)]
/// struct OrderPlaced { id: u64 }
///
/// #[derive(Serialize, Deserialize, Message)]
/// struct OrderCancelled { id: u64 }
///
/// #[derive(Handler)]
/// #[handler(OrderPlaced, OrderCancelled, timeout = "5s")]
/// struct Billing;
///
/// impl Handle<OrderPlaced> for Billing {
///     async fn handle(&self, order: OrderPlaced, cx: &Context) -> Result<(), Failure> {
///         println!("charge order {} on attempt {}", order.id, cx.attempt());
///         Ok(())
///     }
/// }
///
/// impl Handle<OrderCancelled> for Billing {
///     async fn handle(&self, order: OrderCancelled, _: &Context) -> Result<(), Failure> {
///         println!("refund order {}", order.id);
///         Ok(())
///     }
/// }
///
/// let consumer = Consumer::new("billing", Source::queue("orders")).handler(|| Billing);
/// # let _ = consumer;
/// ```
///
/// A generic struct is a handler wherever it has all the `Handle` implementations; it needs no bounds of its own:
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use steadfast::prelude::*;
/// # #[derive(Serialize, Deserialize, Message)] struct OrderPlaced { id: u64 }
/// trait Ledger: Send + Sync + 'static { fn charge(&self, id: u64); }
///
/// #[derive(Handler)]
/// #[handler(OrderPlaced)]
/// struct Billing<L> { ledger: L }
///
/// impl<L: Ledger> Handle<OrderPlaced> for Billing<L> {
///     async fn handle(&self, order: OrderPlaced, _: &Context) -> Result<(), Failure> {
///         self.ledger.charge(order.id);
///         Ok(())
///     }
/// }
/// ```
#[proc_macro_derive(Handler, attributes(handler))]
pub fn derive_handler(input: TokenStream) -> TokenStream {
    handler::derive(&parse_macro_input!(input as DeriveInput)).into()
}

/// Makes a free `async fn` a handler of the one message type that it takes.
///
/// The function becomes a unit struct of the same name, to be given as `.handler(|| on_order)`. It takes the message by
/// value and, if it wants it, `&Context`; its error is [`Failure`](../steadfast/struct.Failure.html) or anything that
/// becomes one by `?`. The options are `timeout = "5s"`, `blocking` and `crate = ..`, as for `derive(Handler)`, and
/// `on_dead = order_is_dead`: the function that hears of a message before it goes to the dead letters, as
/// [`Handle::on_dead`](../steadfast/trait.Handle.html#method.on_dead) has it.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use steadfast::prelude::*;
///
/// #[derive(Serialize, Deserialize, Message)]
/// struct OrderPlaced { id: u64 }
///
/// #[handler(timeout = "5s", on_dead = order_is_dead)]
/// async fn on_order(order: OrderPlaced, cx: &Context) -> Result<(), Failure> {
///     println!("order {} on attempt {}", order.id, cx.attempt());
///     Ok(())
/// }
///
/// async fn order_is_dead(order: OrderPlaced, failure: &Failure, _: &Context) -> Result<(), Failure> {
///     eprintln!("order {} is dead: {failure}", order.id);
///     Ok(())
/// }
///
/// let consumer = Consumer::new("orders", Source::queue("orders")).handler(|| on_order);
/// # let _ = consumer;
/// ```
///
/// Above a struct it is the attribute of `derive(Handler)`, which stands above it.
#[proc_macro_attribute]
pub fn handler(args: TokenStream, item: TokenStream) -> TokenStream {
    function::handler(args.into(), item.into()).into()
}
