//! Exchanges and bindings as values. What is done with them is [`declare`](crate::declare)'s.

use std::sync::Arc;

use lapin::ExchangeKind;
use steadfast_core::HeaderValue;

use crate::argument::{Argument, Arguments};

/// A durable exchange: what it is called, how it routes, and from where it is fed itself.
///
/// It is declared (`exchange.declare`) together with whatever is bound to it, by
/// [`Broker::declare`](steadfast_core::Broker::declare), by a consumer of a queue that is bound to it, or by
/// [`Topology::apply`](crate::Topology::apply).
///
/// ```
/// use steadfast_amqp::{Exchange, Queue};
///
/// let everything = Exchange::fanout("audit");
/// let unrouted = Exchange::fanout("shop.unrouted");
/// let shop = Exchange::topic("shop").alternate(unrouted.clone());
/// let orders = Queue::quorum("orders").bind(shop.clone(), "order.#");
/// let lost = Queue::quorum("orders.unrouted").bind(unrouted, "");
/// // what `shop` routes by `order.*` goes to `audit` as well
/// let audit = Queue::quorum("audit").bind(everything.bind(shop, "order.*"), "");
/// # let _ = (orders, lost, audit);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub(crate) name: Arc<str>,
    /// None: somebody else's; it is not declared.
    pub(crate) kind: Option<ExchangeKind>,
    pub(crate) internal: bool,
    pub(crate) auto_delete: bool,
    pub(crate) alternate: Option<Box<Exchange>>,
    pub(crate) bindings: Vec<Binding>,
}

impl Exchange {
    /// Routes to queues bound with exactly the message's routing key.
    pub fn direct(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, Some(ExchangeKind::Direct))
    }

    /// Routes by patterns: `*` stands for one word, `#` for any number of them; words are separated by dots.
    pub fn topic(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, Some(ExchangeKind::Topic))
    }

    /// Routes to every queue that is bound.
    pub fn fanout(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, Some(ExchangeKind::Fanout))
    }

    /// Routes by the message's headers; see [`Queue::bind_headers`](crate::Queue::bind_headers).
    pub fn headers(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, Some(ExchangeKind::Headers))
    }

    /// An exchange of a type that a plugin brings, for example `x-consistent-hash`.
    pub fn custom(name: impl Into<Arc<str>>, kind: impl Into<String>) -> Self {
        Self::new(name, Some(ExchangeKind::Custom(kind.into())))
    }

    /// An exchange that its operators own: it must be there, and is taken as it is.
    pub fn passive(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, None)
    }

    fn new(name: impl Into<Arc<str>>, kind: Option<ExchangeKind>) -> Self {
        Self {
            name: name.into(),
            kind,
            internal: false,
            auto_delete: false,
            alternate: None,
            bindings: Vec::new(),
        }
    }

    /// Takes messages from other exchanges only, not from publishers. Default: from both.
    #[must_use]
    pub fn internal(mut self) -> Self {
        self.internal = true;
        self
    }

    /// The broker deletes it when the last thing that was bound to it is gone. Default: it stays.
    #[must_use]
    pub fn auto_delete(mut self) -> Self {
        self.auto_delete = true;
        self
    }

    /// Where messages go that it has no queue for (`alternate-exchange`); that exchange is declared before it. A publish
    /// that ends up in a queue in this way is no [`Unroutable`](steadfast_core::PublishErrorKind::Unroutable). Default:
    /// nowhere.
    #[must_use]
    pub fn alternate(mut self, exchange: Self) -> Self {
        self.alternate = Some(Box::new(exchange));
        self
    }

    /// Feeds it from another exchange (`exchange.bind`), which is declared before it.
    #[must_use]
    pub fn bind(mut self, from: Self, routing_key: impl Into<Arc<str>>) -> Self {
        self.bindings.push(Binding::new(from, routing_key));
        self
    }

    /// Feeds it from an exchange of type headers, with what [`Queue::bind_headers`](crate::Queue::bind_headers) says.
    #[must_use]
    pub fn bind_headers<N: Into<String>, V: Into<HeaderValue>>(
        mut self,
        from: Self,
        matching: Match,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.bindings.push(Binding::by_headers(from, matching, headers));
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn arguments(&self) -> Arguments {
        let alternate = self.alternate.iter();
        alternate.map(|to| ("alternate-exchange".to_owned(), Argument::from(&*to.name))).collect()
    }
}

/// Which of a binding's headers a message must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// Every one, with the same value.
    All,
    /// At least one, with the same value.
    Any,
}

/// That an exchange routes to a queue or to another exchange. Made by [`Queue::bind`](crate::Queue::bind) and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub(crate) exchange: Exchange,
    pub(crate) routing_key: Arc<str>,
    pub(crate) arguments: Arguments,
    /// A header of a type that a binding cannot compare.
    pub(crate) unusable: Option<String>,
}

impl Binding {
    pub(crate) fn new(exchange: Exchange, routing_key: impl Into<Arc<str>>) -> Self {
        Self { exchange, routing_key: routing_key.into(), arguments: Arguments::new(), unusable: None }
    }

    pub(crate) fn by_headers<N: Into<String>, V: Into<HeaderValue>>(
        exchange: Exchange,
        matching: Match,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let mut binding = Self::new(exchange, "");
        let word = match matching {
            Match::All => "all",
            Match::Any => "any",
        };
        binding.arguments.insert("x-match".to_owned(), Argument::from(word));
        for (name, value) in headers {
            let name = name.into();
            let argument = match value.into() {
                HeaderValue::Int(number) => Argument::Number(number),
                HeaderValue::Text(text) => Argument::Text(text),
                HeaderValue::Bool(flag) => Argument::Flag(flag),
                other => {
                    binding.unusable = Some(format!("header `{name}` is {}", other.type_name()));
                    continue;
                }
            };
            binding.arguments.insert(name, argument);
        }
        binding
    }
}
