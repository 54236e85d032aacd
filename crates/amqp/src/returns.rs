//! PURE: which messages came back unroutable.
//!
//! The broker returns an unroutable message, and confirms it after that. The client would hand the oldest returned message
//! to whichever confirm comes next, so that with many under way a confirm says nothing about its own message. Hence the
//! sieve takes returned messages out of what the client sees and notes each here, before the client sees its confirm: whoever
//! has a confirm asks whether his message is noted.
//!
//! A message is known by where it was published to and by its id, or by its body where it has none. Those that agree in all
//! of that cannot be told apart by anybody. They are counted: as many fail as came back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wire;

/// The channels of one connection whose returned messages are noted. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched(Arc<Mutex<HashMap<u16, Arc<Returns>>>>);

impl Watched {
    /// From now on, on a channel that was just opened. No more than `most` of its messages are under way at once.
    pub(crate) fn watch(&self, channel: u16, most: usize) -> Arc<Returns> {
        let returns = Arc::new(Returns::new(most));
        self.channels().insert(channel, Arc::clone(&returns));
        returns
    }

    fn of(&self, channel: u16) -> Option<Arc<Returns>> {
        self.channels().get(&channel).cloned()
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<u16, Arc<Returns>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What identifies a message among those under way on its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(u64);

/// One channel's.
#[derive(Debug)]
pub(crate) struct Returns {
    /// Publishers do not choose keys, so they cannot make them collide.
    keys: RandomState,
    most: usize,
    /// How many are noted: where nothing came back, a confirm costs no lock.
    count: AtomicUsize,
    noted: Mutex<HashMap<Key, usize>>,
}

impl Returns {
    fn new(most: usize) -> Self {
        Self { keys: RandomState::new(), most, count: AtomicUsize::new(0), noted: Mutex::default() }
    }

    /// The key of a message that is about to be published.
    pub(crate) fn key(&self, exchange: &str, routing_key: &str, id: Option<&str>, body: &[u8]) -> Key {
        let mut hasher = self.route(exchange.as_bytes(), routing_key.as_bytes());
        if !add_id(&mut hasher, id.map(str::as_bytes)) {
            hasher.write(body);
        }
        Key(hasher.finish())
    }

    /// Whether a message came back whose confirm is in. Each confirm asks once, so that nothing stays noted.
    pub(crate) fn take(&self, key: Key) -> bool {
        // the client's locks are between this and the note of its own message
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut noted = self.noted();
        let Some(times) = noted.get_mut(&key) else { return false };
        *times -= 1;
        if *times == 0 {
            noted.remove(&key);
        }
        self.count.fetch_sub(1, Ordering::Release);
        true
    }

    fn note(&self, key: Key) {
        let mut noted = self.noted();
        // more than are under way did not come from here
        if self.count.load(Ordering::Acquire) < self.most {
            *noted.entry(key).or_default() += 1;
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    fn route(&self, exchange: &[u8], routing_key: &[u8]) -> DefaultHasher {
        let mut hasher = self.keys.build_hasher();
        (exchange, routing_key).hash(&mut hasher);
        hasher
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// False where there is none, and the body has to stand for it.
fn add_id(hasher: &mut DefaultHasher, id: Option<&[u8]>) -> bool {
    let id = id.filter(|id| !id.is_empty());
    id.hash(hasher);
    id.is_some()
}

/// Returned messages of one connection, as their frames come.
#[derive(Debug, Default)]
pub(crate) struct Coming {
    watched: Watched,
    /// Those that are not there as a whole: one for each channel at most.
    messages: HashMap<u16, Message>,
}

#[derive(Debug)]
struct Message {
    returns: Arc<Returns>,
    hasher: DefaultHasher,
    by_body: bool,
    /// Bytes of body to come.
    left: u64,
}

impl Coming {
    pub(crate) fn new(watched: Watched) -> Self {
        Self { watched, ..Self::default() }
    }

    /// True where this method begins a message that came back to a channel that is watched.
    pub(crate) fn method(&mut self, channel: u16, payload: &[u8]) -> bool {
        if !self.messages.is_empty() {
            // a message whose rest does not come is none
            self.messages.remove(&channel);
        }
        if !payload.starts_with(&[0, 60, 0, 50]) {
            return false;
        }
        let (Some(returns), Some((exchange, routing_key))) =
            (self.watched.of(channel), wire::returned(payload))
        else {
            return false;
        };
        let hasher = returns.route(exchange, routing_key);
        self.messages.insert(channel, Message { returns, hasher, by_body: false, left: 0 });
        true
    }

    /// True where this content header belongs to such a message.
    pub(crate) fn header(&mut self, channel: u16, payload: &[u8]) -> bool {
        let Some(message) = self.messages.get_mut(&channel) else { return false };
        message.by_body = !add_id(&mut message.hasher, wire::message_id(payload));
        message.left = wire::body_size(payload);
        self.end(channel);
        true
    }

    /// Whether the next body on this channel belongs to such a message.
    pub(crate) fn has_body(&self, channel: u16) -> bool {
        self.messages.contains_key(&channel)
    }

    /// More of a body. However it is cut, it comes to the same.
    pub(crate) fn body(&mut self, channel: u16, bytes: &[u8]) {
        let Some(message) = self.messages.get_mut(&channel) else { return };
        if message.by_body {
            message.hasher.write(bytes);
        }
        message.left = message.left.saturating_sub(bytes.len() as u64);
        self.end(channel);
    }

    /// Notes the message when it is there as a whole.
    fn end(&mut self, channel: u16) {
        if let Entry::Occupied(message) = self.messages.entry(channel)
            && message.get().left == 0
        {
            let Message { returns, hasher, .. } = message.remove();
            returns.note(Key(hasher.finish()));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text].concat()
    }

    /// The method and the content header of a returned message.
    pub(crate) fn returned(
        exchange: &str,
        routing_key: &str,
        id: Option<&str>,
        body: usize,
    ) -> (Vec<u8>, Vec<u8>) {
        let method = [
            &[0, 60, 0, 50, 1, 56][..],
            &short(b"NO_ROUTE"),
            &short(exchange.as_bytes()),
            &short(routing_key.as_bytes()),
        ];
        // content type, delivery mode, and the id in its place behind them
        let flags = (1_u16 << 15) | (1 << 12) | if id.is_some() { 1 << 7 } else { 0 };
        let header = [
            &[0, 60, 0, 0][..],
            &(body as u64).to_be_bytes(),
            &flags.to_be_bytes(),
            &short(b"json"),
            &[2],
            &id.map(|id| short(id.as_bytes())).unwrap_or_default(),
        ];
        (method.concat(), header.concat())
    }

    /// Lets a returned message come, its body in pieces.
    fn come(watched: &Watched, route: (&str, &str), id: Option<&str>, body: &[u8], piece: usize) {
        let (method, header) = returned(route.0, route.1, id, body.len());
        let mut coming = Coming::new(watched.clone());
        assert!(coming.method(7, &method) && coming.header(7, &header));
        for piece in body.chunks(piece) {
            assert!(coming.has_body(7), "there is more of it");
            coming.body(7, piece);
        }
        assert!(!coming.has_body(7));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Whatever is published at once, each one learns of its own: those that came back, as often as they did.
        #[test]
        fn as_many_fail_as_came_back(
            sent in prop::collection::vec((0_usize..3, 0_usize..4, 0_usize..3, any::<bool>()), 1..60),
            piece in 1_usize..40,
        ) {
            let (routes, ids) = ([("", "a"), ("a", ""), ("x", "a")], [None, Some(""), Some("1"), Some("2")]);
            let bodies = [b"".to_vec(), vec![7; 100], vec![8; 100]];
            let watched = Watched::default();
            let returns = watched.watch(7, sent.len());
            // what nobody can tell apart is one kind
            let kind = |route: usize, id: usize, body: usize| if id < 2 { (route, 0, body) } else { (route, id, 0) };
            let mut unroutable = HashMap::<_, usize>::new();
            for (route, id, body, routable) in &sent {
                if !routable {
                    come(&watched, routes[*route], ids[*id], &bodies[*body], piece);
                    *unroutable.entry(kind(*route, *id, *body)).or_default() += 1;
                }
            }
            let mut failed = HashMap::new();
            for (route, id, body, _) in &sent {
                let (exchange, routing_key) = routes[*route];
                if returns.take(returns.key(exchange, routing_key, ids[*id], &bodies[*body])) {
                    *failed.entry(kind(*route, *id, *body)).or_default() += 1;
                }
            }
            prop_assert_eq!(failed, unroutable);
            prop_assert!(returns.noted().is_empty() && returns.count.load(Ordering::Relaxed) == 0);
        }
    }

    #[test]
    fn no_more_is_noted_than_is_under_way() {
        let watched = Watched::default();
        let returns = watched.watch(7, 3);
        for nth in 0..100 {
            come(&watched, ("", "q"), Some(&nth.to_string()), b"", 1);
        }
        assert_eq!(returns.noted().len(), 3);
    }

    #[test]
    fn a_channel_that_is_opened_again_begins_anew() {
        let watched = Watched::default();
        let before = watched.watch(7, 3);
        come(&watched, ("", "q"), Some("1"), b"", 1);
        let after = watched.watch(7, 3);
        assert!(!after.take(after.key("", "q", Some("1"), b"")));
        assert!(before.take(before.key("", "q", Some("1"), b"")), "who has its confirm still learns of it");
        assert!(!Coming::new(watched).method(8, &returned("", "q", None, 0).0), "nobody watches that one");
    }
}
