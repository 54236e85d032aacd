//! PURE: what is to be declared, one thing after the other, each after what it needs.

use std::fmt;

use crate::exchange::{Binding, Exchange};
use crate::queue::Queue;

/// One thing to declare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    ToQueue(&'a Queue, &'a Binding),
    ToExchange(&'a Exchange, &'a Binding),
}

pub(crate) fn parts_of_queue(queue: &Queue) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    add_queue(queue, &mut parts);
    parts
}

pub(crate) fn add_queue<'a>(queue: &'a Queue, parts: &mut Vec<Part<'a>>) {
    for binding in &queue.bindings {
        add_exchange(&binding.exchange, parts);
    }
    add(Part::Queue(queue), parts);
    for binding in &queue.bindings {
        add(Part::ToQueue(queue, binding), parts);
    }
}

pub(crate) fn add_exchange<'a>(exchange: &'a Exchange, parts: &mut Vec<Part<'a>>) {
    if let Some(alternate) = &exchange.alternate {
        add_exchange(alternate, parts);
    }
    for binding in &exchange.bindings {
        add_exchange(&binding.exchange, parts);
    }
    add(Part::Exchange(exchange), parts);
    for binding in &exchange.bindings {
        add(Part::ToExchange(exchange, binding), parts);
    }
}

fn add<'a>(part: Part<'a>, parts: &mut Vec<Part<'a>>) {
    if !parts.contains(&part) {
        parts.push(part);
    }
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "exchange `{}`", exchange.name),
            Self::Queue(queue) => write!(f, "queue `{}`", queue.name),
            Self::ToQueue(queue, binding) => {
                write!(f, "binding {} -> queue `{}`", Origin(binding), queue.name)
            }
            Self::ToExchange(exchange, binding) => {
                write!(f, "binding {} -> exchange `{}`", Origin(binding), exchange.name)
            }
        }
    }
}

struct Origin<'a>(&'a Binding);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange `{}` by `{}`", self.0.exchange.name, self.0.routing_key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_comes_once_and_after_what_it_needs() {
        let lost = Exchange::fanout("lost");
        let shop = Exchange::topic("shop").alternate(lost.clone());
        let audit = Exchange::fanout("audit").bind(shop.clone(), "#");
        let queue = Queue::quorum("q").bind(shop, "order.*").bind(audit, "").bind(lost, "");
        let names: Vec<_> = parts_of_queue(&queue).iter().map(ToString::to_string).collect();
        let expected = [
            "exchange `lost`",
            "exchange `shop`",
            "exchange `audit`",
            "binding exchange `shop` by `#` -> exchange `audit`",
            "queue `q`",
            "binding exchange `shop` by `order.*` -> queue `q`",
            "binding exchange `audit` by `` -> queue `q`",
            "binding exchange `lost` by `` -> queue `q`",
        ];
        assert_eq!(names, expected);
    }
}
