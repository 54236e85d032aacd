//! Each property a test of its own.

use std::io::Write;

use crate::property::PROPERTIES;
use crate::report::Verdict;
use crate::suite::Suite;

/// Makes a module of this name with one test for each of [`PROPERTIES`](crate::PROPERTIES), so that they run side by
/// side and fail by name. The expression makes a [`Suite`](crate::Suite), once for each test.
///
/// Each test prints one line: `ok`, `skipped: broker has no ..`, or `FAILED: ..` with what was promised and what was seen.
/// Skips are printed even where the test runner keeps the output of tests to itself.
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $suite:expr) => {
        $crate::__conformance_properties!(@tests $module, $suite);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_properties {
    (@tests $module:ident, $suite:expr) => {
        $crate::__conformance_properties!(@each tests [$module, $suite]
            bodies properties typed_headers fields
            acked out_of_order finished settled_late
            redelivered counted connection_lost
            room max_in_flight narrow competing stopped ends closed
            released
            retry_waits retry_keeps retry_at_once retry_counts retry_is_one retry_in_group snoozed
            dead_lettered
            many_publishers unroutable declared_twice foreign_source
            handled attempts undecodable drained);
    };
    (@each tests [$module:ident, $suite:expr] $($name:ident)*) => {
        mod $module {
            #[allow(unused_imports, reason = "the suite may come from anywhere")]
            use super::*;

            /// The suite grew, and this list did not.
            #[test]
            fn every_property_is_a_test() {
                let known: Vec<_> = $crate::PROPERTIES.iter().map($crate::Property::name).collect();
                assert_eq!([$(stringify!($name)),*], known[..]);
            }

            $(
                #[test]
                fn $name() {
                    $crate::check(stringify!($name), stringify!($module), &$suite);
                }
            )*
        }
    };
}

/// Tries the property of this name in a runtime of its own.
///
/// # Panics
/// If the promise is not kept, or there is no such property.
#[expect(clippy::panic, reason = "a test fails by panicking")]
#[expect(clippy::print_stdout, reason = "a test prints how it went")]
pub fn check(name: &str, broker: &str, suite: &Suite) {
    let Some(property) = PROPERTIES.iter().find(|property| property.name() == name) else {
        panic!("there is no property `{name}`");
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime: {error}"),
    };
    let verdict = runtime.block_on(suite.check(property));
    let line = format!("conformance {broker} {name}: {verdict}");
    match verdict {
        Verdict::Kept => println!("{line}"),
        // straight to the stream: what a test that passes prints is not shown, and a skip must be
        Verdict::Skipped(_) => drop(writeln!(std::io::stderr(), "{line}")),
        Verdict::Failed(_) => panic!("{line}"),
    }
}
