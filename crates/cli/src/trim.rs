//! `trim`.

use std::sync::Arc;

use serde_json::json;
use steadfast::Broker;
use steadfast::streams::{HeldBack, Retention, Streams, Trimmed};

use crate::args::Trim;
use crate::output;
use crate::{Exit, Outcome};

pub(crate) async fn run(url: &str, as_json: bool, trim: &Trim) -> Outcome {
    if !url.starts_with("redis") {
        return Err("trimming is for Redis Streams: name the server with --broker redis://…; a queue keeps nothing that \
                    was acknowledged"
            .into());
    }
    let broker = steadfast::streams::connect(url).await?;
    let outcome = on_broker(&broker, as_json, trim).await;
    broker.close().await;
    outcome
}

async fn on_broker(broker: &Arc<Streams>, as_json: bool, trim: &Trim) -> Outcome {
    let stream = trim.stream.as_str();
    let mut retention = Retention::new();
    if let Some(entries) = trim.last {
        retention = retention.last(entries);
    }
    if let Some(age) = trim.younger_than {
        retention = retention.younger_than(age);
    }
    let preview = broker.preview_trim(stream, &retention).await?;
    let what = format!("take {} entries out of `{stream}` for good", preview.count);
    if trim.preview || trim.sure.dry_run {
        output::would(as_json, &what, &value(&preview))?;
        tell_what_holds(as_json, &preview);
        return Ok(Exit::Done);
    }
    if preview.count == 0 {
        output::note(&format!("nothing in `{stream}` is to go"));
        tell_what_holds(as_json, &preview);
        return Ok(Exit::Nothing);
    }
    if let Some(exit) = output::confirm(&what, &trim.sure)? {
        return Ok(exit);
    }
    let trimmed = broker.trim(stream, &retention).await?;
    if as_json {
        output::json(&value(&trimmed))?;
    } else {
        output::line(&format!("{} entries are gone", trimmed.count))?;
    }
    tell_what_holds(as_json, &trimmed);
    Ok(Exit::Done)
}

fn holds(trimmed: &Trimmed) -> Option<String> {
    match trimmed.held_back.as_ref()? {
        HeldBack::Group(group) => Some(format!("group `{group}` has not read it, or has it pending")),
        HeldBack::NoGroup => {
            Some("the stream has no group: whoever is to read it may not have come yet".to_owned())
        }
        _ => Some("something holds it back".to_owned()),
    }
}

fn tell_what_holds(as_json: bool, trimmed: &Trimmed) {
    if let (false, Some(why)) = (as_json, holds(trimmed)) {
        let oldest = trimmed.oldest_kept.as_deref().unwrap_or("-");
        output::note(&format!("more is kept than was asked for, from {oldest} on: {why}"));
    }
}

fn value(trimmed: &Trimmed) -> serde_json::Value {
    json!({ "count": trimmed.count, "oldest_kept": trimmed.oldest_kept, "held_back": holds(trimmed) })
}
