//! What a message type must say of itself.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type that travels: its name on the wire, its version, and the key that orders it.
///
/// `#[derive(Message)]` writes this; by hand it is as short:
///
/// ```
/// use std::borrow::Cow;
/// use serde::{Deserialize, Serialize};
/// use steadfast_core::Message;
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced { id: u64, customer: String }
///
/// impl Message for OrderPlaced {
///     const NAME: &'static str = "order.placed";
///     fn key(&self) -> Option<Cow<'_, str>> { Some(Cow::Borrowed(&self.customer)) }
/// }
/// # assert_eq!(OrderPlaced::VERSION, 1);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message",
    label = "not a message",
    note = "add `#[derive(Serialize, Deserialize, Message)]` to `{Self}`"
)]
pub trait Message: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The type's name on the wire. It chooses the handler, so it must not change when the Rust name does.
    const NAME: &'static str;

    /// Version of the type's shape, from 1. Travels with the message; a handler takes any version that decodes.
    const VERSION: u32 = 1;

    /// Where messages of this type are published unless the call says otherwise: a queue or a stream. Default: the one named
    /// as the type.
    const DESTINATION: Option<&'static str> = None;

    /// What orders and partitions messages of this type. It travels as the header `steadfast-key`; no consumer orders by it
    /// yet.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }
}
