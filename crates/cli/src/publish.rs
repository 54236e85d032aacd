//! `publish`.

use std::io::Read;

use bytes::Bytes;
use steadfast::{Destination, Outgoing};

use crate::args::Publish;
use crate::{Exit, Outcome, Session, output};

pub(crate) async fn run(session: &Session, publish: Publish) -> Outcome {
    let body = match (publish.body, &publish.file) {
        (Some(body), _) => Bytes::from(body),
        (None, Some(file)) => {
            std::fs::read(file).map_err(|error| format!("read {}: {error}", file.display()))?.into()
        }
        (None, None) => {
            let mut body = Vec::new();
            std::io::stdin().read_to_end(&mut body)?;
            body.into()
        }
    };
    let destination = match publish.exchange {
        Some(exchange) => Destination::exchange(exchange, publish.to),
        None => Destination::queue(publish.to),
    };
    let mut message = Outgoing::new(destination, body);
    for header in publish.header {
        let (name, value) =
            header.split_once('=').ok_or_else(|| format!("--header {header}: write it as NAME=VALUE"))?;
        message.headers.set(name.to_owned(), value);
    }
    if let Some(id) = publish.id {
        message.message_id = id;
    }
    message.message_type = publish.message_type;
    message.correlation_id = publish.correlation_id;
    message.content_type = Some(publish.content_type);
    let (id, to, size) = (message.message_id.clone(), message.destination.to_string(), message.payload.len());
    if !publish.dry_run {
        session.broker.publisher().await?.send(message).await?;
    }
    if session.json {
        output::json(
            &serde_json::json!({ "id": id, "to": to, "bytes": size, "published": !publish.dry_run }),
        )?;
    } else if publish.dry_run {
        output::line(&format!("would publish {size} bytes to `{to}`"))?;
    } else {
        output::line(&format!("{id} is safe in `{to}`"))?;
    }
    Ok(Exit::Done)
}
