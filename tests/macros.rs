//! What the macros write, seen from the traits that it implements.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{Incoming, Origin};

#[derive(Serialize, Deserialize, Message)]
#[message(name = "order.placed", version = 2, key = customer, to = "orders")]
struct Order {
    customer: String,
}

#[derive(Serialize, Deserialize, Message)]
struct InvoicePaid {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
struct HTTPRequestSeenV2 {}

#[derive(Serialize, Deserialize, Message)]
#[message(name = "a", version = 2)]
#[message(key = "customer.0")]
struct Nested {
    customer: Customer,
}

#[derive(Serialize, Deserialize)]
struct Customer(u64);

#[derive(Serialize, Deserialize, Message)]
#[message(key = 1)]
struct Tuple(u8, Option<String>);

#[derive(Serialize, Deserialize, Message)]
#[message(key = r#type)]
struct Raw {
    r#type: Box<str>,
}

#[test]
fn a_message_says_what_its_attribute_says() {
    assert_eq!((Order::NAME, Order::VERSION, Order::DESTINATION), ("order.placed", 2, Some("orders")));
    assert_eq!(Nested::NAME, "a");
    assert_eq!(Nested::VERSION, 2);
}

#[test]
fn what_is_not_said_has_a_default() {
    assert_eq!(
        (InvoicePaid::NAME, InvoicePaid::VERSION, InvoicePaid::DESTINATION),
        ("invoice.paid", 1, None)
    );
    assert_eq!(InvoicePaid { id: 1 }.key(), None);
    assert_eq!(HTTPRequestSeenV2::NAME, "http.request.seen.v2");
}

#[test]
fn a_key_is_borrowed_where_it_is_text() {
    let order = Order { customer: "ada".into() };
    assert!(matches!(order.key(), Some(Cow::Borrowed("ada"))));
    assert!(matches!(Raw { r#type: "b".into() }.key(), Some(Cow::Borrowed("b"))));
    assert_eq!(Nested { customer: Customer(7) }.key().as_deref(), Some("7"));
    assert_eq!(Tuple(0, None).key(), None);
    assert!(matches!(Tuple(0, Some("c".into())).key(), Some(Cow::Borrowed("c"))));
}

#[derive(Handler)]
#[handler(Order, InvoicePaid, timeout = "250ms")]
struct Billing;

impl Handle<Order> for Billing {
    async fn handle(&self, _: Order, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<InvoicePaid> for Billing {
    async fn handle(&self, _: InvoicePaid, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

/// Two attributes, and no more than one type in each.
#[derive(Handler)]
#[handler(Order)]
#[handler(InvoicePaid)]
struct Unlimited;

impl Handle<Order> for Unlimited {
    async fn handle(&self, _: Order, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<InvoicePaid> for Unlimited {
    async fn handle(&self, _: InvoicePaid, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[handler(timeout = "2m")]
async fn on_order(order: Order, cx: &Context) -> Result<(), Failure> {
    if order.customer.is_empty() {
        return Err(Failure::reject(format!("no customer, on attempt {}", cx.attempt())));
    }
    Ok(())
}

#[handler]
async fn on_invoice(_: InvoicePaid) -> Result<(), Failure> {
    Ok(())
}

/// Routes as they print, and the timeout.
fn seen<H: Handler>(_: &H) -> (Vec<String>, Option<Duration>) {
    (H::routes().iter().map(|route| format!("{route:?}")).collect(), H::timeout())
}

#[test]
fn a_handler_has_a_route_to_each_type_in_its_order() {
    let routes = vec!["order.placed v2".to_owned(), "invoice.paid v1".to_owned()];
    assert_eq!(seen(&Billing), (routes.clone(), Some(Duration::from_millis(250))));
    assert_eq!(seen(&Unlimited), (routes, None));
}

#[test]
fn a_function_is_a_handler_of_its_argument() {
    assert_eq!(seen(&on_order), (vec!["order.placed v2".to_owned()], Some(Duration::from_secs(120))));
    assert_eq!(seen(&on_invoice), (vec!["invoice.paid v1".to_owned()], None));
    assert_eq!(format!("{on_order:?}"), "on_order");
}

/// The face under another name, as a crate that re-exports it has it.
mod elsewhere {
    pub(crate) use steadfast as face;
    use steadfast::{Context, Failure};

    pub(crate) async fn invoice_is_dead(
        invoice: super::InvoicePaid,
        failure: &Failure,
        _: &Context,
    ) -> Result<(), Failure> {
        let heard = format!("invoice {}: {failure}", invoice.id);
        std::future::ready(Err(Failure::retry(heard))).await
    }
}

#[derive(Serialize, Deserialize, Message)]
#[message(crate = crate::elsewhere::face, name = "renamed", key = id)]
struct Renamed {
    id: u8,
}

#[handler(crate = crate::elsewhere::face)]
async fn on_renamed(_: Renamed) -> Result<(), Failure> {
    Ok(())
}

#[test]
fn the_face_may_be_elsewhere() {
    assert_eq!(seen(&on_renamed).0, ["renamed v1"]);
    assert_eq!(Renamed { id: 3 }.key().as_deref(), Some("3"));
}

#[derive(Handler)]
#[handler(InvoicePaid, blocking, timeout = "1s")]
struct Blocks;

impl Handle<InvoicePaid> for Blocks {
    async fn handle(&self, _: InvoicePaid, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[handler(on_dead = elsewhere::invoice_is_dead)]
async fn on_doomed(_: InvoicePaid) -> Result<(), Failure> {
    Err(Failure::reject("doomed"))
}

#[tokio::test]
async fn a_function_hears_of_dead_letters_by_another() {
    let cx = Context::detached(Arc::new(Incoming::new("{}", Origin::default())));
    let failure = on_doomed.handle(InvoicePaid { id: 7 }, &cx).await.expect_err("doomed");
    let heard =
        on_doomed.on_dead(InvoicePaid { id: 7 }, &failure, &cx).await.expect_err("says what it heard");
    assert_eq!(heard.to_string(), "invoice 7: doomed");
    assert!(
        on_invoice.on_dead(InvoicePaid { id: 7 }, &failure, &cx).await.is_ok(),
        "by default nothing happens"
    );
}

#[test]
fn blocking_is_off_unless_it_is_said() {
    assert!(<Blocks as Handler>::blocking());
    assert_eq!(<Blocks as Handler>::timeout(), Some(Duration::from_secs(1)));
    assert!(!<Billing as Handler>::blocking());
}
