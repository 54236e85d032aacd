//! The suite, tried itself: for every property there is a broker with one fault, and the property catches it.

mod broker;
mod fault;
mod publisher;
mod settler;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use steadfast_conformance::{Need, PROPERTIES, Suite, Verdict};
use steadfast_core::{BoxError, Broker};
use steadfast_embedded::Embedded;

use crate::broker::Broken;
use crate::fault::{CAUGHT, Fault, World};

fn suite(fault: Fault) -> Suite {
    let (server, world) = (Embedded::new(), Arc::new(World::new(fault)));
    let connect = move || {
        let broker: Arc<dyn Broker> = Arc::new(Broken::new(server.reconnect(), Arc::clone(&world)));
        async move { Ok(broker) }
    };
    Suite::new(connect).deadline(Duration::from_secs(5))
}

/// The verdict on a broker with this fault, under paused time.
fn verdict(fault: Fault, name: &str) -> Result<Verdict, BoxError> {
    let property = PROPERTIES.iter().find(|property| property.name() == name);
    let property = property.ok_or_else(|| format!("there is no property `{name}`"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(runtime.block_on(suite(fault).check(property)))
}

#[test]
fn every_fault_is_caught_by_its_properties() -> Result<(), BoxError> {
    for (fault, names) in CAUGHT {
        for name in *names {
            let verdict = verdict(*fault, name)?;
            assert!(matches!(verdict, Verdict::Failed(_)), "{fault:?} passes as `{name}`: {verdict}");
        }
    }
    Ok(())
}

#[test]
fn every_property_catches_a_fault() {
    for property in PROPERTIES {
        let catches = CAUGHT.iter().any(|(_, names)| names.contains(&property.name()));
        assert!(catches, "`{}` is not known to catch anything", property.name());
    }
}

#[test]
fn the_same_broker_without_a_fault_passes() -> Result<(), BoxError> {
    for property in PROPERTIES {
        let expected = match property.needs() {
            Need::Groups => Verdict::Skipped(Need::Groups),
            _ => Verdict::Kept,
        };
        let verdict = verdict(Fault::None, property.name())?;
        assert_eq!(verdict, expected, "`{}`: {verdict}", property.name());
    }
    assert_eq!(verdict(Fault::HasGroups, "retry_in_group")?, Verdict::Kept);
    Ok(())
}

#[test]
fn a_violation_says_what_was_promised_seen_and_where() -> Result<(), BoxError> {
    let Verdict::Failed(violation) = verdict(Fault::LosesBytes, "bodies")? else {
        return Err("it loses bytes".into());
    };
    assert_eq!(
        violation.promise(),
        "every published message arrives exactly once, its body equal byte by byte"
    );
    assert_eq!(violation.seen(), "a body of 1 bytes arrived as 0 bytes that differ from byte 0 on");
    assert!(violation.place().starts_with("conformance-bodies-"), "{violation}");
    let skipped = verdict(Fault::None, "retry_in_group")?.to_string();
    assert_eq!(skipped, "skipped: broker has no consumer groups (Capabilities::groups)");
    Ok(())
}
