//! PURE: names of queues, exchanges and routing keys by one convention, and what cannot be one.

use std::fmt;

/// Names that begin alike, for a service or for each tenant of one: words joined by dots.
///
/// A word is made of lower-case letters, digits, `-` and `_`, so that names can be told apart by eye, stand in a URL and be
/// matched by topic patterns word by word. A queue's name has at most 230 bytes, which leaves room for those of its retry
/// queues; an exchange's and a routing key 255.
///
/// ```
/// use steadfast_amqp::Naming;
///
/// let names = Naming::new(["acme", "shop"])?;
/// assert_eq!(names.queue(["orders", "billing"])?, "acme.shop.orders.billing");
/// assert_eq!(names.dead_letters(["orders", "billing"])?, "acme.shop.orders.billing.dead");
/// assert_eq!(names.exchange(["events"])?, "acme.shop.events");
/// assert_eq!(Naming::routing_key(["order", "placed"])?, "order.placed");
/// assert_eq!(Naming::pattern(["order", "*", "#"])?, "order.*.#");
/// let error = names.queue(["Orders"]).unwrap_err();
/// assert_eq!(error.to_string(), "name a queue: `O` in `Orders` is none of a-z, 0-9, `-` and `_`");
/// # Ok::<_, steadfast_amqp::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    prefix: String,
}

/// Something is no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    what: String,
}

const LONGEST: usize = 255;
/// Longest name of a source queue: the names of its retry queues must fit into AMQP's 255 bytes, too.
pub(crate) const LONGEST_QUEUE: usize = 230;
/// What the dead letters' queue is called beyond the queue that they come from.
const DEAD: &str = "dead";

impl Naming {
    /// Names that begin with these words, for example tenant and service. Without any, names are what they are.
    pub fn new<W: AsRef<str>>(prefix: impl IntoIterator<Item = W>) -> Result<Self, NameError> {
        let prefix = join("name a prefix", prefix, LONGEST_QUEUE, false)?;
        match prefix.split('.').next() {
            Some("amq") => {
                Err(NameError { what: "name a prefix: names that begin with `amq` are the broker's".into() })
            }
            _ => Ok(Self { prefix }),
        }
    }

    /// A queue.
    pub fn queue<W: AsRef<str>>(&self, words: impl IntoIterator<Item = W>) -> Result<String, NameError> {
        self.named("name a queue", words, LONGEST_QUEUE)
    }

    /// The queue for dead letters of the queue of that name: the same and `dead`.
    pub fn dead_letters<W: AsRef<str>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<String, NameError> {
        let queue = self.named("name a queue for dead letters", words, LONGEST_QUEUE)?;
        Ok(format!("{queue}.{DEAD}"))
    }

    /// An exchange.
    pub fn exchange<W: AsRef<str>>(&self, words: impl IntoIterator<Item = W>) -> Result<String, NameError> {
        self.named("name an exchange", words, LONGEST)
    }

    /// A routing key to publish with. It has no prefix: it is the exchange that belongs to somebody.
    pub fn routing_key<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Result<String, NameError> {
        join("name a routing key", words, LONGEST, false)
    }

    /// A pattern to bind with: words, `*` for any one word, `#` for any number of them.
    pub fn pattern<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> Result<String, NameError> {
        join("name a pattern", words, LONGEST, true)
    }

    fn named<W: AsRef<str>>(
        &self,
        what: &str,
        words: impl IntoIterator<Item = W>,
        longest: usize,
    ) -> Result<String, NameError> {
        let name = join(what, words, longest, false)?;
        let error = |why: &str| NameError { what: format!("{what}: {why}") };
        if name.is_empty() {
            return Err(error("it needs at least one word"));
        }
        let name = if self.prefix.is_empty() { name } else { format!("{}.{name}", self.prefix) };
        if name.split('.').next() == Some("amq") {
            return Err(error("names that begin with `amq` are the broker's"));
        }
        if name.len() > longest {
            return Err(error(&format!("`{name}` has {} bytes, and {longest} are the most", name.len())));
        }
        Ok(name)
    }
}

fn join<W: AsRef<str>>(
    what: &str,
    words: impl IntoIterator<Item = W>,
    longest: usize,
    wild: bool,
) -> Result<String, NameError> {
    let mut name = String::new();
    for word in words {
        let word = word.as_ref();
        check(what, word, wild)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(word);
    }
    if name.len() > longest {
        let what = format!("{what}: `{name}` has {} bytes, and {longest} are the most", name.len());
        return Err(NameError { what });
    }
    Ok(name)
}

fn check(what: &str, word: &str, wild: bool) -> Result<(), NameError> {
    if wild && matches!(word, "*" | "#") {
        return Ok(());
    }
    let odd = |letter: &char| !matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_');
    let what = match word.chars().find(odd) {
        Some(odd) => format!("{what}: `{odd}` in `{word}` is none of a-z, 0-9, `-` and `_`"),
        None if word.is_empty() => format!("{what}: a word is empty"),
        None => return Ok(()),
    };
    Err(NameError { what })
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for NameError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        let names = Naming::new(["acme"]).expect("a name");
        let refused = |made: Result<String, NameError>| made.expect_err("refused").to_string();
        assert!(refused(names.queue(["a b"])).contains("` ` in `a b`"));
        assert!(refused(names.queue(["a", ""])).contains("empty"));
        assert!(refused(names.queue([] as [&str; 0])).contains("at least one word"));
        assert!(refused(names.exchange(["*"])).contains("`*`"));
        assert!(refused(Naming::routing_key(["order.placed"])).contains("`.`"));
        assert!(refused(names.queue(["x".repeat(226)])).contains("231 bytes, and 230"));
        assert!(Naming::new(["amq"]).is_err());
        let bare = Naming::new([] as [&str; 0]).expect("none is fine");
        assert!(refused(bare.queue(["amq", "gen"])).contains("the broker's"));
        assert_eq!(bare.queue(["orders"]).as_deref(), Ok("orders"));
    }

    proptest! {
        #[test]
        fn whatever_is_made_is_a_name(words in prop::collection::vec(".{0,20}", 0..20)) {
            let names = Naming::new(["t"]).expect("a name");
            if let Ok(name) = names.queue(&words) {
                prop_assert!(name.len() <= LONGEST_QUEUE && name.starts_with("t."));
                prop_assert!(name.split('.').count() == words.len() + 1);
            }
        }
    }
}
