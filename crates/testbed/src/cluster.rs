//! A private Redis Cluster: masters that divide the hash slots among themselves, replicas where a test wants them, and what
//! an operator does to them.

use std::time::Duration;

use crate::error::{TestbedError, TestbedErrorKind};
use crate::ports;
use crate::redis::{Redis, RedisOptions};
use crate::resp::{Reply, Resp};
use crate::server::{until, with_other_ports};
use crate::unique::unique;

const SLOTS: usize = 16_384;
/// After so many milliseconds without an answer the nodes take one of them for dead. A machine that is busy for a moment
/// must not look like that.
const NODE_TIMEOUT: &str = "2000";
const DEADLINE: Duration = Duration::from_secs(60);
/// Most keys of one `MIGRATE`, unless the test says how many.
const BATCH: usize = 100;
/// How long the two nodes may take over one, in milliseconds.
const MIGRATE_WITHIN: &str = "10000";

/// How a private cluster is started.
#[derive(Debug, Clone)]
#[must_use]
pub struct ClusterOptions {
    nodes: usize,
    node: RedisOptions,
    full_coverage: bool,
}

impl ClusterOptions {
    /// Three nodes of what the environment names, nothing kept on disk, and a node that is lost takes only its own slots
    /// along.
    pub fn new() -> Self {
        Self { nodes: 3, node: RedisOptions::new(), full_coverage: false }
    }

    /// How many masters, at least one.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// How each node is started, for example with [`RedisOptions::append`] where one is to come back with its data.
    pub fn node(mut self, node: RedisOptions) -> Self {
        self.node = node;
        self
    }

    /// Whether every node refuses every key while the slots of one are lost (`cluster-require-full-coverage`).
    pub fn full_coverage(mut self, full_coverage: bool) -> Self {
        self.full_coverage = full_coverage;
        self
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Nodes of one cluster that nobody else knows; they end when this is dropped or the process ends.
#[derive(Debug)]
pub struct RedisCluster {
    options: ClusterOptions,
    nodes: Vec<Redis>,
    /// What the nodes call each other; kept with their data.
    ids: Vec<String>,
}

impl RedisCluster {
    /// Starts the nodes, divides the slots among them in order, and waits until all know all.
    pub fn start(options: &ClusterOptions) -> Result<Self, TestbedError> {
        let mut cluster = Self { options: options.clone(), nodes: Vec::new(), ids: Vec::new() };
        let mut buses = Vec::new();
        for number in 0..options.nodes {
            buses.push(cluster.start_node()?);
            let [first, next] = [number, number + 1].map(|number| SLOTS * number / options.nodes);
            let [epoch, first, last] = [number + 1, first, next - 1].map(|number| number.to_string());
            // before they meet: two of one epoch would have to settle whose is the greater first
            cluster.ask(number, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
            cluster.ask(number, &["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
        }
        for (number, bus) in buses.iter().enumerate().skip(1) {
            cluster.meet(number, *bus)?;
        }
        cluster.until_all_know_all()?;
        Ok(cluster)
    }

    /// Adds a replica of this node, waits until it follows, and returns its number.
    pub fn add_replica(&mut self, of: usize) -> Result<usize, TestbedError> {
        let number = self.nodes.len();
        let bus = self.start_node()?;
        self.meet(number, bus)?;
        self.until_all_know_all()?;
        self.ask(number, &["CLUSTER", "REPLICATE", &self.ids[of]])?;
        self.until_follows(number)?;
        Ok(number)
    }

    /// Makes a replica the master in place of its own, which lives and becomes its replica; nothing that was written is lost.
    pub fn fail_over(&self, replica: usize) -> Result<(), TestbedError> {
        self.until_follows(replica)?;
        self.ask(replica, &["CLUSTER", "FAILOVER"])?;
        until("the replica is the master", DEADLINE, || self.is_master(replica))
    }

    /// Waits until the replica has what its master has now: only that survives the master's death.
    pub fn until_replicated(&self, master: usize, replica: usize) -> Result<(), TestbedError> {
        let written = self.offset(master, "master_repl_offset")?;
        until("the replica has what was written", DEADLINE, || {
            Ok(self.offset(replica, "slave_repl_offset")? >= written)
        })
    }

    /// The address for a client, with all nodes.
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", self.hosts())
    }

    /// `host:port` of each node, with commas between.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        hosts.join(",")
    }

    /// The nodes, to be halted or looked at one by one. [`RedisCluster::restart`] starts one again.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The version by a node's own word, for example `7.0.15`; that of Valkey for a Valkey.
    pub fn version(&self) -> &str {
        self.nodes.first().map_or("unknown", Redis::version)
    }

    /// The number of the node that has this key, dead or alive, by what a living one says.
    pub fn node_of(&self, key: &str) -> Result<usize, TestbedError> {
        let asked = self.living()?;
        let slot = self.ask(asked, &["CLUSTER", "KEYSLOT", key])?.int();
        let Reply::List(ranges) = self.ask(asked, &["CLUSTER", "SLOTS"])? else { return Err(unowned(key)) };
        // first slot, last slot, and who has them: address, port, and more
        let port = ranges.iter().find_map(|range| match range {
            Reply::List(range) => match &range[..] {
                [first, last, Reply::List(owner), ..] if (first.int()..=last.int()).contains(&slot) => {
                    owner.get(1).map(Reply::int)
                }
                _ => None,
            },
            Reply::Nil | Reply::Int(_) | Reply::Text(_) => None,
        });
        let node = self.nodes.iter().position(|node| port == Some(i64::from(node.port())));
        node.ok_or_else(|| unowned(key))
    }

    /// A name that no other test uses, whose keys this node has.
    pub fn unique_on(&self, node: usize, prefix: &str) -> Result<String, TestbedError> {
        loop {
            let name = unique(prefix);
            if self.node_of(&name)? == node {
                return Ok(name);
            }
        }
    }

    /// Moves the slot of this key, with all that is in it, to another node, as an operator does while clients work.
    pub fn move_slot(&self, key: &str, to: usize) -> Result<(), TestbedError> {
        self.begin_move(key, to)?.finish()
    }

    /// The same up to the first key: the slot is importing there and migrating here.
    pub fn begin_move(&self, key: &str, to: usize) -> Result<SlotMove<'_>, TestbedError> {
        let from = self.node_of(key)?;
        let slot = self.ask(from, &["CLUSTER", "KEYSLOT", key])?.text();
        self.ask(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]])?;
        self.ask(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]])?;
        Ok(SlotMove { cluster: self, slot, from, to })
    }

    /// Ends a node with SIGKILL and waits until it is gone; what it kept on disk stays for [`RedisCluster::restart`].
    pub fn kill9(&self, node: usize) -> Result<(), TestbedError> {
        self.nodes[node].kill9()
    }

    /// Starts a node again where it was, after stopping it if it still runs, and waits until it and every other that runs
    /// says that the cluster is well.
    pub fn restart(&self, node: usize) -> Result<(), TestbedError> {
        self.nodes[node].restart()?;
        let alive = |number: &usize| self.nodes[*number].pid().is_some();
        until("all nodes that run say that the cluster is well", DEADLINE, || {
            (0..self.nodes.len()).filter(alive).try_fold(true, |all, number| Ok(all && self.is_well(number)?))
        })
    }

    /// Starts one more that knows nobody yet; returns the port on which the others can talk to it.
    fn start_node(&mut self) -> Result<u16, TestbedError> {
        let (node, bus) = start_node(&self.options)?;
        self.nodes.push(node);
        self.ids.push(self.ask(self.nodes.len() - 1, &["CLUSTER", "MYID"])?.text());
        Ok(bus)
    }

    fn meet(&self, number: usize, bus: u16) -> Result<(), TestbedError> {
        let [port, bus] = [self.nodes[number].port(), bus].map(|port| port.to_string());
        self.ask(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).map(drop)
    }

    fn until_all_know_all(&self) -> Result<(), TestbedError> {
        until("all nodes know all nodes and all slots", DEADLINE, || {
            (0..self.nodes.len()).try_fold(true, |all, number| Ok(all && self.knows_all(number)?))
        })
    }

    fn knows_all(&self, node: usize) -> Result<bool, TestbedError> {
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        let told = self.ask(node, &["CLUSTER", "INFO"])?.text();
        let whole = [&*known, &format!("cluster_slots_ok:{SLOTS}")];
        let handshakes = self.ask(node, &["CLUSTER", "NODES"])?.text().contains("handshake");
        Ok(!handshakes && whole.iter().all(|line| says(&told, line)) && self.is_well(node)?)
    }

    fn is_well(&self, node: usize) -> Result<bool, TestbedError> {
        Ok(says(&self.ask(node, &["CLUSTER", "INFO"])?.text(), "cluster_state:ok"))
    }

    /// How far the node's replication is; 0 where it does not say.
    fn offset(&self, node: usize, name: &str) -> Result<u64, TestbedError> {
        let told = self.ask(node, &["INFO", "replication"])?.text();
        let value = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
    }

    fn is_master(&self, node: usize) -> Result<bool, TestbedError> {
        Ok(says(&self.ask(node, &["INFO", "replication"])?.text(), "role:master"))
    }

    /// Until then it would not take over, and nobody who does not know it as a replica would elect it.
    fn until_follows(&self, replica: usize) -> Result<(), TestbedError> {
        until("the replica follows, and all know", DEADLINE, || {
            let told = self.ask(replica, &["INFO", "replication"])?.text();
            let alive = |number: &usize| self.nodes[*number].pid().is_some();
            (0..self.nodes.len()).filter(alive).try_fold(says(&told, "master_link_status:up"), |all, by| {
                Ok(all && self.is_replica(replica, by)?)
            })
        })
    }

    /// As the node `by` sees it.
    fn is_replica(&self, node: usize, by: usize) -> Result<bool, TestbedError> {
        let known = format!("{} ", self.ids[node]);
        let seen = self.ask(by, &["CLUSTER", "NODES"])?.text();
        Ok(seen.lines().any(|line| line.starts_with(&known) && line.contains("slave")))
    }

    fn living(&self) -> Result<usize, TestbedError> {
        let living = self.nodes.iter().position(|node| node.pid().is_some());
        living.ok_or_else(|| TestbedError::new(TestbedErrorKind::Ended, "no node of the cluster runs"))
    }

    fn ask<W: AsRef<[u8]>>(&self, node: usize, command: &[W]) -> Result<Reply, TestbedError> {
        Resp::connect(self.nodes[node].port())?.ask(command)
    }
}

/// A slot on its way from one node to another: keys that have moved are at the new one, to which the old one sends those
/// who ask. Dropped, it stays as it is.
#[derive(Debug)]
#[must_use]
pub struct SlotMove<'c> {
    cluster: &'c RedisCluster,
    slot: String,
    from: usize,
    to: usize,
}

impl SlotMove<'_> {
    /// Moves so many keys at most, in an order of the server's; returns how many there were to move.
    pub fn migrate(&self, most: usize) -> Result<usize, TestbedError> {
        let Self { cluster, slot, from, .. } = self;
        let keys = cluster.ask(*from, &["CLUSTER", "GETKEYSINSLOT", slot, &most.to_string()])?.texts();
        self.carry(&keys)?;
        Ok(keys.len())
    }

    /// Moves this key alone.
    pub fn migrate_key(&self, key: &str) -> Result<(), TestbedError> {
        self.carry(&[key.as_bytes().to_vec()])
    }

    /// Moves what is left, and tells all masters that run who has the slot now.
    pub fn finish(self) -> Result<(), TestbedError> {
        while self.migrate(BATCH)? > 0 {}
        let Self { cluster, slot, from, to } = self;
        // the new owner first: from here on no node can send anybody in a circle
        let others = (0..cluster.nodes.len()).filter(|number| ![from, to].contains(number));
        for number in [to, from].into_iter().chain(others) {
            if cluster.nodes[number].pid().is_some() && cluster.is_master(number)? {
                cluster.ask(number, &["CLUSTER", "SETSLOT", &slot, "NODE", &cluster.ids[to]])?;
            }
        }
        Ok(())
    }

    fn carry(&self, keys: &[Vec<u8>]) -> Result<(), TestbedError> {
        if keys.is_empty() {
            return Ok(());
        }
        let port = self.cluster.nodes[self.to].port().to_string();
        let mut command: Vec<&[u8]> =
            ["MIGRATE", "127.0.0.1", &port, "", "0", MIGRATE_WITHIN, "KEYS"].map(str::as_bytes).into();
        command.extend(keys.iter().map(Vec::as_slice));
        self.cluster.ask(self.from, &command).map(drop)
    }
}

/// The node, and the port on which the others talk to it.
fn start_node(options: &ClusterOptions) -> Result<(Redis, u16), TestbedError> {
    with_other_ports(|| {
        // by default it would be the other port and 10000, free or not
        let [bus] = ports::free()?;
        let coverage = if options.full_coverage { "yes" } else { "no" };
        let settings = [
            ("--cluster-enabled", "yes"),
            ("--cluster-port", &bus.to_string()),
            ("--cluster-node-timeout", NODE_TIMEOUT),
            ("--cluster-require-full-coverage", coverage),
            ("--repl-diskless-sync-delay", "0"),
        ];
        let add = |node: RedisOptions, (name, value): (&str, &str)| node.argument(name).argument(value);
        let node = settings.into_iter().fold(options.node.clone(), add);
        Ok((Redis::start(&node)?, bus))
    })
}

fn says(told: &str, line: &str) -> bool {
    told.lines().any(|told| told == line)
}

fn unowned(key: &str) -> TestbedError {
    TestbedError::new(TestbedErrorKind::Refused, format!("no node of ours has the slot of `{key}`"))
}
