//! `tail`.

use std::sync::Arc;

use steadfast::{Destination, Incoming, Letter, Payload, Token};

use crate::args::Tail;
use crate::export::Line;
use crate::output::{self, clean};
use crate::{Exit, Outcome, Session};

pub(crate) async fn run(session: &Session, tail: Tail) -> Outcome {
    let place = match tail.exchange {
        Some(exchange) => Destination::exchange(exchange, tail.place),
        None => Destination::queue(tail.place),
    };
    let follow = session.operator.follow(&place).await?;
    output::note(&format!("following `{place}`; Ctrl-C ends it"));
    let mut left = tail.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let page = tokio::select! {
            page = follow.next() => page?,
            interrupted = tokio::signal::ctrl_c() => return interrupted.map(|()| Exit::Done).map_err(Into::into),
        };
        for message in page.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            left -= 1;
            show(session.json, message)?;
        }
    }
    Ok(Exit::Done)
}

fn show(as_json: bool, message: Arc<Incoming>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if as_json {
        return output::json(&Line::of(&Letter { mark: Token(0, 0), message }));
    }
    let place = match (&message.origin.exchange, &message.origin.routing_key, &message.origin.entry_id) {
        (Some(exchange), Some(key), _) => format!("{exchange}/{key}"),
        (_, _, Some(entry)) => entry.clone(),
        (_, _, None) => message.origin.source.to_string(),
    };
    let kind = message.message_type.as_deref().unwrap_or("-");
    let body = match &message.payload {
        Payload::Body(body) => String::from_utf8_lossy(body).into_owned(),
        Payload::Fields(fields) => {
            let text =
                |(name, value): &(String, bytes::Bytes)| format!("{name}={}", String::from_utf8_lossy(value));
            fields.iter().map(text).collect::<Vec<_>>().join(" ")
        }
    };
    let id = message.message_id.as_deref().unwrap_or("-");
    output::line(&format!(
        "{}  {}  {}  {}",
        clean(&place, 80),
        clean(id, 40),
        clean(kind, 40),
        clean(&body, 400)
    ))
}
