//! What goes to stderr: logs, errors, the verdict.

use std::error::Error;
use std::io::{self, Write};
use std::panic;
use std::process::ExitCode;

use tracing_subscriber::layer::{Identity, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::report::Report;

/// Logs by `RUST_LOG`, what Steadfast calls an error without it; and keeps simulated panics, of which there are many, off
/// the terminal.
pub fn begin() {
    begin_with(Identity::new());
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<&str>();
        if !text.is_some_and(|text| text.starts_with("simulated")) {
            usual(info);
        }
    }));
}

/// Logs the same, and shows every event to `layer`.
pub fn begin_with(layer: impl Layer<Registry> + Send + Sync) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("steadfast=error"));
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_filter(filter);
    tracing_subscriber::registry().with(layer).with(log).init();
}

/// Says what failed, and why.
pub fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    say(&format!("error: {error}"));
    let mut source = error.source();
    while let Some(error) = source {
        say(&format!("  because: {error}"));
        source = error.source();
    }
    ExitCode::FAILURE
}

/// Success where every order is accounted for; else says what is wrong.
pub fn verdict(report: &Report) -> ExitCode {
    for problem in report.problems() {
        say(&format!("error: {problem}"));
    }
    if report.problems().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A stderr that is closed is no reason to fail.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}
