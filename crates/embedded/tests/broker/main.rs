//! What the embedded broker promises beyond the contract of all brokers.

mod connection;
mod queue;
mod support;
