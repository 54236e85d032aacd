//! Private brokers on free ports for the tests and benches of this workspace.
//!
//! ```text
//!   test process ──── pipe ────► guard (sh)         the pipe closes when the test process is gone, however it went
//!        │                         │
//!        └─ spawns ─► broker ◄─────┘ ends by process id whatever carries this broker's mark, then removes its folder
//! ```
//!
//! [`Rabbit`] and [`Redis`] each own a server, its ports on the loopback address and its folder. They can be killed,
//! paused and restarted on the same port with the same data, which is what tests of recovery need. Tests that only need
//! some broker share one per process through [`shared`]. [`RedisCluster`] and [`Sentinels`] are several servers that
//! know each other.
//!
//! Everything is synchronous and from the standard library: a testbed must not depend on what it tests. It reads
//! `/proc`, so it runs on Linux only.

mod brokers;
mod certificates;
mod cluster;
mod error;
mod guard;
mod ports;
mod proxy;
mod rabbit;
mod redis;
mod resp;
mod sentinels;
mod server;
pub mod shared;
mod unique;
mod wire;

pub use brokers::{BROKERS, BrokerSet, REDIS_SERVER, RedisServer};
pub use certificates::{Certificates, ClientCertificates};
pub use cluster::{ClusterOptions, RedisCluster, SlotMove};
pub use error::{TestbedError, TestbedErrorKind};
pub use guard::Guard;
pub use proxy::{Proxy, Step, Wire};
pub use rabbit::{Rabbit, RabbitOptions};
pub use redis::{Append, Redis, RedisOptions};
pub use sentinels::Sentinels;
pub use unique::unique;
