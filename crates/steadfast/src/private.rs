//! What generated code calls, so that it need not be generated.
//!
//! Much of it is here for its errors: a bound with a sentence of its own says what to change where the compiler could
//! only name a trait.

use std::borrow::Cow;
use std::fmt::Display;
use std::ops::Deref;

use serde::Serialize;
use serde::de::DeserializeOwned;
use steadfast_core::{Context, Failure, Reply};

/// A field as a key: `KeyOf::new(&field).text()`.
///
/// Four types, one inside the other, of which method lookup takes the first that fits: text is borrowed, an optional text
/// too, and all else is printed. The last one fits always, so that what cannot be a key is told so by `KeyText`.
#[derive(Debug)]
pub struct KeyOf<'a, T: ?Sized>(OptionalText<'a, T>);

impl<'a, T: ?Sized> KeyOf<'a, T> {
    /// The key in this field.
    pub fn new(field: &'a T) -> Self {
        Self(OptionalText(Optional(Printed(field))))
    }
}

impl<'a, T: AsRef<str> + ?Sized> KeyOf<'a, T> {
    /// The text itself.
    #[expect(clippy::unnecessary_wraps, reason = "one signature, whichever type answers")]
    pub fn text(&self) -> Option<Cow<'a, str>> {
        Some(Cow::Borrowed(self.0.0.0.0.as_ref()))
    }
}

impl<'a, T: ?Sized> Deref for KeyOf<'a, T> {
    type Target = OptionalText<'a, T>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// `Option` of a text.
#[derive(Debug)]
pub struct OptionalText<'a, T: ?Sized>(Optional<'a, T>);

impl<'a, T: AsRef<str>> OptionalText<'a, Option<T>> {
    /// The text itself, if there is one.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        self.0.0.0.as_ref().map(|text| Cow::Borrowed(text.as_ref()))
    }
}

impl<'a, T: ?Sized> Deref for OptionalText<'a, T> {
    type Target = Optional<'a, T>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// `Option` of what prints.
#[derive(Debug)]
pub struct Optional<'a, T: ?Sized>(Printed<'a, T>);

impl<'a, T> Optional<'a, Option<T>> {
    /// The value, printed, if there is one.
    pub fn text(&self) -> Option<Cow<'a, str>>
    where
        T: KeyText,
    {
        self.0.0.as_ref().map(|value| Cow::Owned(value.key_text()))
    }
}

impl<'a, T: ?Sized> Deref for Optional<'a, T> {
    type Target = Printed<'a, T>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// What prints.
#[derive(Debug)]
pub struct Printed<'a, T: ?Sized>(&'a T);

impl<'a, T: ?Sized> Printed<'a, T> {
    /// The value, printed.
    #[expect(clippy::unnecessary_wraps, reason = "one signature, whichever type answers")]
    pub fn text(&self) -> Option<Cow<'a, str>>
    where
        T: KeyText,
    {
        Some(Cow::Owned(self.0.key_text()))
    }
}

/// What can be a key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a message's key",
    label = "a key is a text, a number, or anything that implements `Display`",
    note = "name another field, or a field of this one (`key = customer.id`), or implement `Display` for `{Self}`"
)]
pub trait KeyText {
    /// The value, printed.
    fn key_text(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display + ?Sized> KeyText for T {
    fn key_text(&self) -> String {
        self.to_string()
    }
}

/// What a `#[handler]` function may take beside its message.
#[diagnostic::on_unimplemented(
    message = "the second argument of a handler is `&Context`, not `&{Self}`",
    label = "write `&Context` here, or leave the argument out",
    note = "what else the handler needs (a database, a client) are the fields of a struct with `#[derive(Handler)]`"
)]
pub trait ContextArgument {
    /// The context, under its own type.
    fn of(cx: &Context) -> &Self;
}

impl ContextArgument for Context {
    fn of(cx: &Context) -> &Self {
        cx
    }
}

/// The context, if that is the type asked for.
pub fn context<T: ContextArgument>(cx: &Context) -> &T {
    T::of(cx)
}

/// What a `#[handler]` function may return.
#[diagnostic::on_unimplemented(
    message = "a handler returns `Result<(), Failure>`, not `{Self}`",
    label = "write `Result<(), Failure>` here",
    note = "a reply is a message: `Result<Quote, Failure>`, where `Quote` has `#[derive(Serialize, Deserialize, Message)]`"
)]
pub trait HandlerResult {
    /// The result of `Handle::handle`, once what was returned is sent.
    fn reply(self, cx: &Context) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<R: HandlerReply, E: IntoFailure> HandlerResult for Result<R, E> {
    #[track_caller]
    fn reply(self, cx: &Context) -> impl Future<Output = Result<(), Failure>> + Send {
        let result = match self {
            Ok(reply) => Ok(reply),
            // not `map_err`, whose closure would be the place that the failure names
            Err(error) => Err(error.into_failure()),
        };
        async move { result?.reply(cx).await }
    }
}

/// What a `#[handler]` function may return in `Ok`.
#[diagnostic::on_unimplemented(
    message = "a handler returns `Result<(), Failure>`, or a message as its reply, not `{Self}`",
    label = "write `Result<(), Failure>` here",
    note = "a reply is a message: add `#[derive(Serialize, Deserialize, Message)]` to `{Self}`"
)]
pub trait HandlerReply: Reply {}

#[diagnostic::do_not_recommend]
impl<R: Reply> HandlerReply for R {}

/// What a `#[handler]` function may fail with.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a handler",
    label = "write `Result<(), Failure>` here",
    note = "`?` makes a `Failure` of any `std::error::Error`, and `Failure::retry(..)` of a text or a boxed error"
)]
pub trait IntoFailure {
    /// The failure, made at the caller's place.
    fn into_failure(self) -> Failure;
}

#[diagnostic::do_not_recommend]
impl<E: Into<Failure>> IntoFailure for E {
    #[track_caller]
    fn into_failure(self) -> Failure {
        self.into()
    }
}

/// What the body of a message can be. Asked for beside `Message`, whose own bounds are refused in serde's words.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the body of a message: `Serialize` or `Deserialize` is missing",
    label = "add `#[derive(Serialize, Deserialize)]` here",
    note = "both come with `use serde::{{Deserialize, Serialize}};`"
)]
pub trait Body {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> Body for T {}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{self, Poll, Waker};

    use steadfast_core::{Incoming, Origin};

    use super::*;

    #[test]
    fn a_key_borrows_text_and_prints_the_rest() {
        let text = "ada".to_owned();
        assert!(matches!(KeyOf::new(&text).text(), Some(Cow::Borrowed("ada"))));
        assert!(matches!(KeyOf::new("ada").text(), Some(Cow::Borrowed("ada"))));
        assert!(matches!(KeyOf::new(&Some(text)).text(), Some(Cow::Borrowed("ada"))));
        assert_eq!(KeyOf::new(&None::<String>).text(), None);
        assert_eq!(KeyOf::new(&7_u64).text().as_deref(), Some("7"));
        assert_eq!(KeyOf::new(&Some(7_u64)).text().as_deref(), Some("7"));
        assert_eq!(KeyOf::new(&None::<u64>).text(), None);
    }

    fn fingerprint(handled: impl Future<Output = Result<(), Failure>>) -> u64 {
        match pin!(handled).poll(&mut task::Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(failure)) => failure.fingerprint(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_names_the_place_where_it_became_one() {
        let cx = Context::detached(Arc::new(Incoming::new("", Origin::default())));
        let first = HandlerResult::reply(Err::<(), _>(std::fmt::Error), &cx);
        let second = HandlerResult::reply(Err::<(), _>(std::fmt::Error), &cx);
        assert_ne!(fingerprint(first), fingerprint(second));
    }
}
