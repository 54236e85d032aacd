//! `inspect` and `pending`: what a broker tells.

use steadfast::Inspection;

use crate::args::{PendingClaim, PendingList, Source};
use crate::output::{self, clean};
use crate::{Exit, Outcome, Session, dead};

pub(crate) async fn inspect(session: &Session, source: &Source) -> Outcome {
    let inspection = session.operator.inspect(&source.source()).await?;
    if session.json {
        output::json(&inspection)?;
        return Ok(Exit::Done);
    }
    let Inspection { name, kind, length, ready, unsettled, delayed, consumers, groups, .. } = &inspection;
    output::line(&format!("{kind} {}", clean(name, 200)))?;
    for (what, count) in [
        ("length", length),
        ("ready", ready),
        ("unsettled", unsettled),
        ("delayed", delayed),
        ("consumers", consumers),
    ] {
        let count = count.map_or_else(|| "(the broker does not tell)".to_owned(), |count| count.to_string());
        output::line(&format!("  {what:<10} {count}"))?;
    }
    if !groups.is_empty() {
        let mut rows = Vec::new();
        for group in groups {
            let lag = group.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string());
            let (name, last) = (clean(&group.name, 40), clean(&group.last_delivered, 40));
            rows.push(vec![name, String::new(), lag, group.pending.to_string(), last]);
            for consumer in &group.consumers {
                let idle = format!("idle {} ms", consumer.idle_ms);
                let name = clean(&consumer.name, 60);
                rows.push(vec![String::new(), name, String::new(), consumer.pending.to_string(), idle]);
            }
        }
        output::table(&["GROUP", "CONSUMER", "LAG", "PENDING", "LAST DELIVERED"], &rows)?;
    }
    Ok(Exit::Done)
}

pub(crate) async fn pending(session: &Session, list: &PendingList) -> Outcome {
    let pending = session.operator.pending(&list.source.source(), list.limit).await?;
    if session.json {
        pending.iter().try_for_each(output::json)?;
    } else if !pending.is_empty() {
        let rows = pending.iter().map(|entry| {
            let (idle, deliveries) = (format!("{} ms", entry.idle_ms), entry.deliveries.to_string());
            vec![entry.id.clone(), clean(&entry.consumer, 60), idle, deliveries]
        });
        output::table(&["ENTRY", "CONSUMER", "IDLE", "DELIVERIES"], &rows.collect::<Vec<_>>())?;
    }
    if pending.is_empty() {
        output::note(&format!("nothing is pending in `{}`", list.source.source));
        return Ok(Exit::Nothing);
    }
    Ok(Exit::Done)
}

pub(crate) async fn claim(session: &Session, claim: &PendingClaim) -> Outcome {
    let source = claim.source.source();
    let idle = claim.idle.as_millis();
    let found = session.operator.pending(&source, claim.limit).await?;
    let fit = found.iter().filter(|entry| u128::from(entry.idle_ms) >= idle).count();
    if fit == 0 {
        output::note(&format!("nothing in `{}` is pending for so long", claim.source.source));
        return Ok(Exit::Nothing);
    }
    let what = format!("free {fit} pending entries of `{}` for other consumers", claim.source.source);
    if claim.sure.dry_run {
        return dead::told(session, &what, &serde_json::json!({ "fit": fit, "pending": found.len() }));
    }
    if let Some(exit) = output::confirm(&what, &claim.sure)? {
        return Ok(exit);
    }
    let freed = session.operator.claim(&source, claim.idle, claim.limit).await?;
    if session.json {
        output::json(&serde_json::json!({ "freed": freed }))?;
    } else {
        output::line(&format!("{freed} freed: the next consumer that asks takes them over"))?;
    }
    Ok(Exit::Done)
}
