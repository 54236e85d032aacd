//! One suite that every Steadfast broker passes; for third parties too.
//!
//! ```text
//!  Suite ── how to connect, how a name becomes a Source, how patient to be
//!    │
//!    └─► Property ─► Trial ── fresh names, connections of its own, a deadline
//!          promise     └─► Taker ── a subscription, watched at every poll
//!          needs              │
//!                             └─► Violation ── what was promised, what was seen, on which queue
//! ```
//!
//! Each property is a promise from the docs of [`Broker`](steadfast_core::Broker) and its friends. What a broker cannot do
//! by its [`Capabilities`](steadfast_core::Capabilities) is skipped, with a line that says so. The suite is tested
//! itself: for every property there is a broker with one fault that it catches.
//!
//! The broker under test is best a private one: names are fresh for every run, and nothing is deleted.
//!
//! ```
//! use std::sync::Arc;
//!
//! use steadfast_conformance::{Suite, conformance_tests};
//! use steadfast_core::Broker;
//! use steadfast_embedded::Embedded;
//!
//! fn suite() -> Suite {
//!     let broker = Embedded::new();
//!     // every call is a new connection to the same broker
//!     Suite::new(move || {
//!         let broker: Arc<dyn Broker> = broker.reconnect();
//!         async move { Ok(broker) }
//!     })
//! }
//!
//! conformance_tests!(embedded, suite());
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
//! # let report = runtime.block_on(suite().run());
//! # assert!(report.passed(), "{report}");
//! ```

mod harness;
mod message;
mod properties;
mod property;
mod report;
mod suite;
mod taker;
mod trial;

#[doc(hidden)]
pub use harness::check;
pub use property::{Need, PROPERTIES, Property};
pub use report::{Report, Verdict, Violation};
pub use suite::Suite;
pub use trial::Trial;
