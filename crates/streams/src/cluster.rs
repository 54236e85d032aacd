//! Which node of a cluster has a key: a map of hash slots that any node tells (`CLUSTER SLOTS`), and that a node corrects who is
//! asked for what it does not have (`MOVED`, `ASK`).
//!
//! Redirections are followed here and not by the client, since it tries again by itself what it lost the answer to: nobody could
//! tell any more a message that was not stored from one that may have been. A node that redirects did nothing.

use std::collections::HashMap;
use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::cluster_routing::Slot;
use redis::{ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, cmd};

use crate::address::{Address, Place, io_error};
use crate::error::{Trouble, trouble};
use crate::runtime;
use crate::wire::Failure;

/// So many hash slots there are.
const SLOTS: u16 = 16_384;
/// How often the nodes are asked for the map at most.
const FLOOR: Duration = Duration::from_millis(250);
/// Most times that one command is sent.
const MOST: u32 = 16;
/// How long to wait where some keys of a command have moved and others have not.
const HALF_MOVED: Duration = Duration::from_millis(25);

pub(crate) struct Cluster {
    address: Address,
    /// The nodes that the URL names.
    seeds: Vec<Place>,
    /// Longest wait for a node.
    limit: Duration,
    map: RwLock<Map>,
    /// When the map was asked for, and what came of it. One asks, the others wait.
    asked: tokio::sync::Mutex<Option<(Instant, Result<(), RedisError>)>>,
}

/// Where one command goes.
pub(crate) struct Course {
    slot: Slot,
    pub(crate) node: Place,
    /// The node is about to take the slot over, and wants to be told that we know.
    pub(crate) asking: bool,
    tries: u32,
}

/// What follows from a failure.
pub(crate) enum Next {
    /// It was not done. It goes again, where the course leads by now.
    Again,
    GiveUp,
    /// It was not done, and the nodes do not agree on who has the key.
    Lost(RedisError),
}

impl Cluster {
    pub(crate) fn new(address: Address, seeds: &[Place], limit: Duration) -> Self {
        let (map, asked) = (RwLock::default(), tokio::sync::Mutex::default());
        Self { address, seeds: seeds.to_vec(), limit, map, asked }
    }

    pub(crate) fn are_together(one: &str, other: &str) -> bool {
        Slot::for_key(one) == Slot::for_key(other)
    }

    /// How many nodes have slots, as far as is known.
    pub(crate) fn size(&self) -> usize {
        self.read().nodes.len()
    }

    /// The nodes that have slots.
    pub(crate) async fn nodes(&self) -> Result<Vec<Place>, RedisError> {
        if self.size() == 0 {
            self.look().await?;
        }
        Ok(self.read().nodes.clone())
    }

    pub(crate) fn knows(&self, node: &Place) -> bool {
        self.read().nodes.contains(node)
    }

    /// Where a command with this key goes first.
    pub(crate) async fn course(&self, key: &str) -> Result<Course, RedisError> {
        let slot = Slot::for_key(key);
        Ok(Course { slot, node: self.node_of(slot).await?, asking: false, tries: 0 })
    }

    /// Where a connection goes that is to stay with this key; true if the node has only the key so far, and not its slot.
    pub(crate) async fn reader_node(&self, key: &str) -> Result<(Place, bool), RedisError> {
        let slot = Slot::for_key(key);
        if let Some(node) = self.read().arriving.get(&slot) {
            return Ok((node.clone(), true));
        }
        Ok((self.node_of(slot).await?, false))
    }

    /// Another node than this one, which could not be reached, if another has the key by now.
    pub(crate) async fn instead_of(&self, node: &Place, key: &str) -> Option<Place> {
        self.other_than(node, Slot::for_key(key)).await
    }

    pub(crate) async fn next(&self, course: &mut Course, failure: &Failure) -> Next {
        course.tries += 1;
        let redirected = self.learn(&failure.error);
        match failure.error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) if course.tries >= MOST => {
                let what = "the nodes of the cluster send each other's keys in circles";
                Next::Lost(io_error(io::ErrorKind::NotConnected, what))
            }
            _ if course.tries >= MOST => Next::GiveUp,
            ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                let Some((node, _)) = redirected else { return Next::GiveUp };
                course.node = node.at(&course.node);
                course.asking = kind == ServerErrorKind::Ask;
                Next::Again
            }
            ErrorKind::Server(ServerErrorKind::TryAgain) => {
                tokio::time::sleep(HALF_MOVED).await;
                Next::Again
            }
            _ if !failure.sent && matches!(trouble(&failure.error), Trouble::Cut | Trouble::Silent) => {
                match self.other_than(&course.node, course.slot).await {
                    Some(node) => {
                        (course.node, course.asking) = (node, false);
                        Next::Again
                    }
                    None => Next::GiveUp,
                }
            }
            _ => Next::GiveUp,
        }
    }

    /// Keeps what an error says about where a key is, and hands it back.
    pub(crate) fn learn(&self, error: &RedisError) -> Option<(Redirected, Slot)> {
        let (node, slot) = error.redirect_node()?;
        let (node, slot) = (Redirected::of(node)?, Slot::new(slot)?);
        let mut map = self.write();
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => map.arrives(slot, &node),
            _ => map.moved(slot, &node),
        }
        drop(map);
        Some((node, slot))
    }

    async fn node_of(&self, slot: Slot) -> Result<Place, RedisError> {
        if let Some(node) = self.read().node(slot) {
            return Ok(node.clone());
        }
        self.look().await?;
        self.read().node(slot).cloned().ok_or_else(|| {
            io_error(io::ErrorKind::NotConnected, "no node of the cluster has the key's hash slot now")
        })
    }

    async fn other_than(&self, node: &Place, slot: Slot) -> Option<Place> {
        self.look().await.ok()?;
        self.read().node(slot).filter(|other| *other != node).cloned()
    }

    /// Asks all nodes at once for the map, unless that was done a moment ago. The first map that is whole counts, or else
    /// the one that covers most.
    async fn look(&self) -> Result<(), RedisError> {
        let mut asked = self.asked.lock().await;
        if let Some((_, outcome)) = asked.as_ref().filter(|(at, _)| at.elapsed() < FLOOR) {
            return outcome.clone();
        }
        let mut nodes = self.seeds.clone();
        nodes.extend(self.read().nodes.iter().filter(|node| !self.seeds.contains(node)).cloned());
        let (address, limit) = (self.address.clone(), self.limit);
        let found = runtime::run(async move { ask_all(&address, &nodes, limit).await }).await;
        let outcome = found.map_err(RedisError::from).and_then(|found| found);
        let outcome = outcome.map(|map| *self.write() = map);
        *asked = Some((Instant::now(), outcome.clone()));
        outcome
    }

    fn read(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_all(address: &Address, nodes: &[Place], limit: Duration) -> Result<Map, RedisError> {
    let mut answers: FuturesUnordered<_> = nodes.iter().map(|node| ask(address, node, limit)).collect();
    let (mut best, mut failure) = (Map::default(), None);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(map) if map.slots.len() == usize::from(SLOTS) => return Ok(map),
            Ok(map) if map.slots.len() > best.slots.len() => best = map,
            Ok(_) => {}
            // what was said tells more than that nobody is there
            Err(error) => {
                if failure.is_none() || !matches!(trouble(&error), Trouble::Cut | Trouble::Silent) {
                    failure = Some(error);
                }
            }
        }
    }
    if !best.slots.is_empty() {
        return Ok(best);
    }
    Err(failure.unwrap_or_else(|| {
        io_error(io::ErrorKind::NotConnected, "no node of the cluster has any hash slots")
    }))
}

async fn ask(address: &Address, node: &Place, limit: Duration) -> Result<Map, RedisError> {
    let mut connection = address.open_at(node, limit, limit).await?;
    let answer: Result<Vec<Value>, _> = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await;
    match answer {
        Ok(ranges) => Ok(Map::of(&ranges, node)),
        Err(error) if error.to_string().contains("cluster support disabled") => {
            let what = "the server is no node of a cluster; connect to it by redis:// or rediss://";
            Err(RedisError::from((ErrorKind::InvalidClientConfig, what, node.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// PURE: who has which slot.
#[derive(Default)]
struct Map {
    nodes: Vec<Place>,
    /// By the node's index.
    slots: HashMap<Slot, usize>,
    /// Slots that are on their way to another node, which has some of their keys already.
    arriving: HashMap<Slot, Place>,
}

impl Map {
    /// As `CLUSTER SLOTS` answers: first and last slot, the node that has them, and its replicas. What is not of this shape is
    /// left out.
    fn of(ranges: &[Value], asked: &Place) -> Self {
        let mut map = Self::default();
        for range in ranges {
            let Value::Array(range) = range else { continue };
            let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = range.as_slice() else {
                continue;
            };
            let [host, Value::Int(port), ..] = node.as_slice() else { continue };
            let Ok(port) = u16::try_from(*port) else { continue };
            // a node that was told no name of its own is where it was asked
            let host =
                <Option<String>>::from_redis_value_ref(host).ok().flatten().filter(|host| is_name(host));
            let host = host.map_or_else(|| asked.host.clone(), Into::into);
            let index = map.index(&Place { host, port });
            let slots = (*first..=*last).filter_map(|slot| Slot::new(u16::try_from(slot).ok()?));
            map.slots.extend(slots.map(|slot| (slot, index)));
        }
        map
    }

    fn node(&self, slot: Slot) -> Option<&Place> {
        self.slots.get(&slot).and_then(|index| self.nodes.get(*index))
    }

    fn moved(&mut self, slot: Slot, to: &Redirected) {
        let node = to.at(self.node(slot).unwrap_or(&to.0));
        let index = self.index(&node);
        self.slots.insert(slot, index);
        self.arriving.remove(&slot);
    }

    fn arrives(&mut self, slot: Slot, at: &Redirected) {
        let node = at.at(self.node(slot).unwrap_or(&at.0));
        self.arriving.insert(slot, node);
    }

    fn index(&mut self, node: &Place) -> usize {
        if let Some(index) = self.nodes.iter().position(|known| known == node) {
            return index;
        }
        self.nodes.push(node.clone());
        self.nodes.len() - 1
    }
}

/// Where a node sends us. Without a host: another port where it is itself.
pub(crate) struct Redirected(Place);

impl Redirected {
    fn of(address: &str) -> Option<Self> {
        let (host, port) = address.rsplit_once(':')?;
        Some(Self(Place { host: host.into(), port: port.parse().ok()? }))
    }

    /// The place, as told by this node.
    fn at(&self, told_by: &Place) -> Place {
        let host = if is_name(&self.0.host) { &self.0.host } else { &told_by.host };
        Place { host: host.clone(), port: self.0.port }
    }
}

/// Servers say `?` where they have no name.
fn is_name(host: &str) -> bool {
    !matches!(host, "" | "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str, port: u16) -> Place {
        Place { host: host.into(), port }
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node(host), node(text("replica"))])
    }

    fn map() -> Map {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let odd = Value::Array(vec![Value::Int(3), text("x")]);
        let ranges = [range(0, 99, text("one"), 7000), range(100, 16_383, Value::Nil, 7001), odd];
        Map::of(&ranges, &place("asked", 1))
    }

    fn slot(number: u16) -> Slot {
        Slot::new(number).expect("a slot")
    }

    #[test]
    fn slots_are_where_the_nodes_say() {
        let map = map();
        assert_eq!((map.nodes.len(), map.slots.len()), (2, usize::from(SLOTS)));
        assert_eq!(map.node(slot(99)), Some(&place("one", 7000)));
        // nobody told it its name
        assert_eq!(map.node(slot(100)), Some(&place("asked", 7001)));
        assert_eq!(Map::default().node(slot(0)), None);
        // a range beyond all slots adds what there is
        let beyond = [range(16_380, 70_000, Value::Nil, 5)];
        assert_eq!(Map::of(&beyond, &place("x", 1)).slots.len(), 4);
    }

    #[test]
    fn a_slot_on_its_way_is_asked_for_until_it_has_moved() {
        let (mut map, seven) = (map(), slot(7));
        map.arrives(seven, &Redirected::of("two:7002").expect("a place"));
        assert_eq!(map.node(seven), Some(&place("one", 7000)));
        assert_eq!(map.arriving.get(&seven), Some(&place("two", 7002)));
        map.moved(seven, &Redirected::of("two:7002").expect("a place"));
        assert_eq!(map.node(seven), Some(&place("two", 7002)));
        assert!(map.arriving.is_empty());
        assert_eq!(map.node(slot(8)), Some(&place("one", 7000)));
        // the same host, another port
        for told in [":7003", "?:7003"] {
            map.moved(seven, &Redirected::of(told).expect("a place"));
            assert_eq!(map.node(seven), Some(&place("two", 7003)));
        }
        assert_eq!(Redirected::of("::1:7000").expect("a place").0, place("::1", 7000));
        assert!(Redirected::of("nowhere").is_none() && Redirected::of("x:99999").is_none());
    }

    #[test]
    fn what_belongs_to_a_stream_is_where_the_stream_is() {
        assert!(Cluster::are_together("orders", "{orders}:delay"));
        assert!(Cluster::are_together("{orders}.dead", "orders"));
        assert!(!Cluster::are_together("orders", "orders.dead"));
    }
}
