//! The RabbitMQ broker against real servers: `STEADFAST_BROKERS` names a folder with another version than the system's.
#![expect(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]
#![expect(clippy::print_stdout, reason = "a process under test says what it does")]

#[path = "amqp/rig.rs"]
mod rig;

#[path = "amqp/consuming.rs"]
mod consuming;
#[path = "amqp/copies.rs"]
mod copies;
#[path = "amqp/crash.rs"]
mod crash;
#[path = "amqp/declaring.rs"]
mod declaring;
#[path = "amqp/faults.rs"]
mod faults;
#[path = "amqp/hostile.rs"]
mod hostile;
#[path = "amqp/publishing.rs"]
mod publishing;
#[path = "amqp/requests.rs"]
mod requests;
#[path = "amqp/schedule.rs"]
mod schedule;
#[path = "amqp/sharing.rs"]
mod sharing;
#[path = "amqp/tls.rs"]
mod tls;
#[path = "amqp/topology.rs"]
mod topology;
