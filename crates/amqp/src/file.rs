//! A topology as a config file has it. What the values mean is [`queue`](crate::queue)'s and [`exchange`](crate::exchange)'s.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use steadfast_core::HeaderValue;

use crate::exchange::{Exchange, Match};
use crate::queue::{DeadLetterStrategy, Overflow, Queue};
use crate::topology::Topology;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default, rename = "exchange")]
    exchanges: Vec<ExchangeEntry>,
    #[serde(default, rename = "queue")]
    queues: Vec<QueueEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExchangeEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    auto_delete: bool,
    alternate: Option<String>,
    #[serde(default)]
    bind: Vec<BindingEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueEntry {
    name: String,
    #[serde(default, rename = "type")]
    kind: Kind,
    #[serde(default, deserialize_with = "duration")]
    message_ttl: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    expires: Option<Duration>,
    max_length: Option<u32>,
    max_bytes: Option<u64>,
    overflow: Option<Full>,
    delivery_limit: Option<u32>,
    dead_letter_exchange: Option<String>,
    dead_letter_routing_key: Option<String>,
    dead_letter_strategy: Option<Strategy>,
    #[serde(default)]
    single_active_consumer: bool,
    max_priority: Option<u8>,
    #[serde(default)]
    bind: Vec<BindingEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingEntry {
    exchange: String,
    #[serde(default)]
    key: String,
    #[serde(rename = "match")]
    matching: Option<Matching>,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    #[default]
    Quorum,
    Classic,
    Passive,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Full {
    DropHead,
    RejectPublish,
    RejectPublishDlx,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Strategy {
    AtMostOnce,
    AtLeastOnce,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Matching {
    All,
    Any,
}

/// What a headers exchange can compare.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Value {
    Flag(bool),
    Number(i64),
    Text(String),
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    text.map(|text| steadfast_core::parse_duration(&text).map_err(de::Error::custom)).transpose()
}

impl TryFrom<File> for Topology {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        twice("exchange", file.exchanges.iter().map(|exchange| &exchange.name))?;
        twice("queue", file.queues.iter().map(|queue| &queue.name))?;
        let names = Names(&file.exchanges);
        let topology = file.exchanges.iter().try_fold(Self::new(), |topology, entry| {
            let asking = format!("exchange `{}`", entry.name);
            Ok::<_, String>(topology.exchange(names.exchange(&entry.name, &asking, &mut Vec::new())?))
        })?;
        file.queues.iter().try_fold(topology, |topology, entry| Ok(topology.queue(names.queue(entry)?)))
    }
}

fn twice<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{what} `{name}` stands there twice: keep one"));
        }
    }
    Ok(())
}

/// The exchanges of a file, by name.
struct Names<'a>(&'a [ExchangeEntry]);

impl Names<'_> {
    /// The exchange with what it needs; `path` has those that it is needed by.
    fn exchange(&self, name: &str, asking: &str, path: &mut Vec<String>) -> Result<Exchange, String> {
        let Some(entry) = self.0.iter().find(|entry| entry.name == name) else {
            return Err(format!(
                "{asking} names the exchange `{name}`, which is not there: add an [[exchange]], with `type = \"passive\"` \
                 where somebody else declares it"
            ));
        };
        if path.iter().any(|above| above == name) {
            return Err(format!(
                "exchange `{name}` needs itself, by {}: take one of them out",
                path.join(" and ")
            ));
        }
        path.push(name.to_owned());
        let asking = format!("exchange `{name}`");
        let mut exchange = match entry.kind.as_str() {
            "direct" => Exchange::direct(name),
            "topic" => Exchange::topic(name),
            "fanout" => Exchange::fanout(name),
            "headers" => Exchange::headers(name),
            "passive" => Exchange::passive(name),
            plugin if plugin.starts_with("x-") => Exchange::custom(name, plugin),
            other => {
                return Err(format!(
                    "{asking} has the type `{other}`: use direct, topic, fanout, headers, passive, or a plugin's, x-…"
                ));
            }
        };
        if let Some(alternate) = &entry.alternate {
            exchange = exchange.alternate(self.exchange(alternate, &asking, path)?);
        }
        if entry.internal {
            exchange = exchange.internal();
        }
        if entry.auto_delete {
            exchange = exchange.auto_delete();
        }
        for binding in &entry.bind {
            let from = self.exchange(&binding.exchange, &asking, path)?;
            exchange = match binding.by(&asking)? {
                By::Key(key) => exchange.bind(from, key),
                By::Headers(matching, headers) => exchange.bind_headers(from, matching, headers),
            };
        }
        path.pop();
        Ok(exchange)
    }

    fn queue(&self, entry: &QueueEntry) -> Result<Queue, String> {
        let asking = format!("queue `{}`", entry.name);
        let mut queue = entry.alone();
        for binding in &entry.bind {
            let from = self.exchange(&binding.exchange, &asking, &mut Vec::new())?;
            queue = match binding.by(&asking)? {
                By::Key(key) => queue.bind(from, key),
                By::Headers(matching, headers) => queue.bind_headers(from, matching, headers),
            };
        }
        queue.check().map_err(|why| format!("{asking}: {why}"))?;
        Ok(queue)
    }
}

impl QueueEntry {
    /// Without its bindings.
    fn alone(&self) -> Queue {
        let name = self.name.as_str();
        let mut queue = match self.kind {
            Kind::Quorum => Queue::quorum(name),
            Kind::Classic => Queue::classic(name),
            Kind::Passive => Queue::passive(name),
        };
        if let Some(age) = self.message_ttl {
            queue = queue.message_ttl(age);
        }
        if let Some(unused) = self.expires {
            queue = queue.expires(unused);
        }
        if let Some(messages) = self.max_length {
            queue = queue.max_length(messages);
        }
        if let Some(bytes) = self.max_bytes {
            queue = queue.max_bytes(bytes);
        }
        if let Some(full) = self.overflow {
            queue = queue.overflow(match full {
                Full::DropHead => Overflow::DropHead,
                Full::RejectPublish => Overflow::RejectPublish,
                Full::RejectPublishDlx => Overflow::RejectPublishDeadLetter,
            });
        }
        if let Some(deliveries) = self.delivery_limit {
            queue = queue.delivery_limit(deliveries);
        }
        if let Some(levels) = self.max_priority {
            queue = queue.max_priority(levels);
        }
        if self.single_active_consumer {
            queue = queue.single_active_consumer();
        }
        self.dead_letters(queue)
    }

    fn dead_letters(&self, mut queue: Queue) -> Queue {
        if let Some(exchange) = &self.dead_letter_exchange {
            queue = queue.dead_letter_exchange(exchange);
        }
        if let Some(key) = &self.dead_letter_routing_key {
            queue = queue.dead_letter_routing_key(key);
        }
        match self.dead_letter_strategy {
            None => queue,
            Some(Strategy::AtMostOnce) => queue.dead_letter_strategy(DeadLetterStrategy::AtMostOnce),
            Some(Strategy::AtLeastOnce) => queue.dead_letter_strategy(DeadLetterStrategy::AtLeastOnce),
        }
    }
}

enum By<'a> {
    Key(&'a str),
    Headers(Match, Vec<(String, HeaderValue)>),
}

impl BindingEntry {
    fn by(&self, asking: &str) -> Result<By<'_>, String> {
        let matching = match self.matching {
            None if self.headers.is_empty() => return Ok(By::Key(&self.key)),
            None => return Err(format!("{asking} binds by `headers`: add `match = \"all\"` or `\"any\"`")),
            Some(_) if !self.key.is_empty() => {
                return Err(format!("{asking} binds by `key` and by `match`: keep one"));
            }
            Some(Matching::All) => Match::All,
            Some(Matching::Any) => Match::Any,
        };
        let headers = self.headers.iter().map(|(name, value)| {
            let value = match value {
                Value::Flag(flag) => HeaderValue::Bool(*flag),
                Value::Number(number) => HeaderValue::Int(*number),
                Value::Text(text) => HeaderValue::Text(text.clone()),
            };
            (name.clone(), value)
        });
        Ok(By::Headers(matching, headers.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Topology, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_what_the_builders_say() {
        let topology = read(
            r#"{
                "exchange": [
                    { "name": "lost", "type": "fanout", "internal": true },
                    { "name": "regions", "type": "headers", "auto_delete": true },
                    { "name": "shop", "type": "topic", "alternate": "lost", "bind": [{ "exchange": "hash", "key": "7" }] },
                    { "name": "hash", "type": "x-consistent-hash" }
                ],
                "queue": [
                    { "name": "orders", "max_length": 9, "overflow": "reject-publish", "message_ttl": "1d",
                      "dead_letter_exchange": "lost", "dead_letter_strategy": "at-least-once",
                      "bind": [{ "exchange": "shop", "key": "order.*" }] },
                    { "name": "eu", "type": "classic", "max_priority": 5, "expires": "1h",
                      "bind": [{ "exchange": "regions", "match": "all", "headers": { "region": "eu", "vip": true } }] }
                ]
            }"#,
        );
        let (lost, hash) =
            (Exchange::fanout("lost").internal(), Exchange::custom("hash", "x-consistent-hash"));
        let regions = Exchange::headers("regions").auto_delete();
        let shop = Exchange::topic("shop").alternate(lost.clone()).bind(hash.clone(), "7");
        let orders = Queue::quorum("orders")
            .max_length(9)
            .overflow(Overflow::RejectPublish)
            .message_ttl(Duration::from_secs(86_400))
            .dead_letter_exchange("lost")
            .dead_letter_strategy(DeadLetterStrategy::AtLeastOnce)
            .bind(shop.clone(), "order.*");
        let headers = [("region", HeaderValue::from("eu")), ("vip", HeaderValue::from(true))];
        let eu = Queue::classic("eu").max_priority(5).expires(Duration::from_secs(3600)).bind_headers(
            regions.clone(),
            Match::All,
            headers,
        );
        let expected = Topology::new()
            .exchange(lost)
            .exchange(regions)
            .exchange(shop)
            .exchange(hash)
            .queue(orders)
            .queue(eu);
        assert_eq!(topology, Ok(expected));
    }

    #[test]
    fn what_a_file_says_wrongly_is_named() {
        let says = |text: &str, what: &str| {
            let error = read(text).expect_err("refused");
            assert!(error.contains(what), "{error}");
        };
        says(r#"{"queue":[{"name":"q","bind":[{"exchange":"x"}]}]}"#, "queue `q` names the exchange `x`");
        says(r#"{"queue":[{"name":"q"},{"name":"q"}]}"#, "queue `q` stands there twice");
        says(r#"{"queue":[{"name":"q","max_lenght":1}]}"#, "max_lenght");
        says(r#"{"queue":[{"name":"q","message_ttl":"soon"}]}"#, "soon");
        says(
            r#"{"queue":[{"name":"q","max_priority":3}]}"#,
            "queue `q`: a quorum queue has no `max_priority`",
        );
        says(r#"{"exchange":[{"name":"x","type":"topics"}]}"#, "the type `topics`: use direct");
        let circle = r#"{"exchange":[{"name":"a","type":"fanout","alternate":"b"},{"name":"b","type":"fanout","alternate":"a"}]}"#;
        says(circle, "needs itself, by a and b");
        let headers = r#"{"exchange":[{"name":"x","type":"headers"}],"queue":[{"name":"q","bind":[{"exchange":"x","headers":{"a":1}}]}]}"#;
        says(headers, "add `match = \"all\"`");
    }
}
