//! `topology plan`, `apply` and `verify`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use steadfast::Broker;
use steadfast::amqp::{Amqp, Plan, State, Step, Topology};

use crate::args::TopologyCommand;
use crate::output::{self, clean};
use crate::{Exit, Outcome};

pub(crate) async fn run(url: &str, as_json: bool, command: &TopologyCommand) -> Outcome {
    let file = match command {
        TopologyCommand::Plan(file) | TopologyCommand::Verify(file) => file,
        TopologyCommand::Apply(apply) => &apply.file,
    };
    let topology = read(&file.file)?;
    if !url.starts_with("amqp") {
        return Err(
            "a topology is RabbitMQ's: name it with --broker amqp://…; Redis makes streams as they are used"
                .into(),
        );
    }
    let broker = steadfast::amqp::connect(url).await?;
    let outcome = on_broker(&broker, as_json, command, &topology).await;
    broker.close().await;
    outcome
}

async fn on_broker(
    broker: &Arc<Amqp>,
    as_json: bool,
    command: &TopologyCommand,
    topology: &Topology,
) -> Outcome {
    let plan = topology.plan(broker).await?;
    match command {
        TopologyCommand::Plan(_) => show(as_json, plan.steps().iter())?,
        TopologyCommand::Verify(_) => show(as_json, plan.steps().iter().filter(|step| !is_well(step)))?,
        TopologyCommand::Apply(apply) => {
            let (missing, bindings, differing) = counts(&plan);
            if differing > 0 {
                show(as_json, plan.steps().iter().filter(|step| matches!(step.state(), State::Differs(_))))?;
                output::note("nothing was declared: delete what differs, or write it into the file as it is");
                return Ok(Exit::Differs);
            }
            let what =
                format!("declare {missing} things that are missing, and make sure of {bindings} bindings");
            if apply.sure.dry_run {
                let preview = json!({ "missing": missing, "bindings": bindings });
                output::would(as_json, &what, &preview)?;
                return Ok(Exit::Done);
            }
            if missing > 0
                && let Some(exit) = output::confirm(&what, &apply.sure)?
            {
                return Ok(exit);
            }
            topology.apply(broker).await?;
            if as_json {
                output::json(&json!({ "declared": missing, "bindings": bindings }))?;
            } else {
                output::line(&format!("{missing} declared, {bindings} bindings made sure of"))?;
            }
            return Ok(Exit::Done);
        }
    }
    Ok(if plan.is_satisfied() { Exit::Done } else { Exit::Differs })
}

fn is_well(step: &Step) -> bool {
    match step.state() {
        State::Missing | State::Differs(_) => false,
        // a binding that cannot be seen, or a state that is newer than this command
        _ => true,
    }
}

/// What is missing, bindings that cannot be seen, what differs.
fn counts(plan: &Plan) -> (usize, usize, usize) {
    let count = |is: fn(&State) -> bool| plan.steps().iter().filter(|step| is(step.state())).count();
    (
        count(|state| *state == State::Missing),
        count(|state| *state == State::Unseen),
        count(|state| matches!(state, State::Differs(_))),
    )
}

fn show<'a>(
    as_json: bool,
    mut steps: impl Iterator<Item = &'a Step>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if as_json {
        return steps.try_for_each(|step| output::json(&value(step)));
    }
    let rows: Vec<_> =
        steps.map(|step| vec![clean(step.what(), 120), clean(&step.state().to_string(), 400)]).collect();
    if rows.is_empty() { Ok(()) } else { output::table(&["WHAT", "ON THE BROKER"], &rows) }
}

fn value(step: &Step) -> Value {
    let (state, differences) = match step.state() {
        State::Present => ("present", &[][..]),
        State::Missing => ("missing", &[][..]),
        State::Differs(differences) => ("differs", &differences[..]),
        State::Unseen => ("unseen", &[][..]),
        _ => ("unknown", &[][..]),
    };
    let differences: Vec<_> = differences
        .iter()
        .map(|one| json!({ "name": one.name(), "file": one.declared(), "broker": one.actual() }))
        .collect();
    json!({ "what": step.what(), "state": state, "differences": differences })
}

fn read(file: &Path) -> Result<Topology, Box<dyn std::error::Error + Send + Sync>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("read {shown}: {error}"))?;
    let read = if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        toml::from_str(&text).map_err(|error| error.to_string())
    };
    Ok(read.map_err(|error| format!("read {shown}: {error}"))?)
}
