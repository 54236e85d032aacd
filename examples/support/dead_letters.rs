//! Reading dead letters back, without taking them away.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::time::Duration;

use steadfast::{Broker, Delivery, Destination, Incoming, Reason, Source, Subscribe, SubscribeError, known};

use crate::names::Names;

/// What is checked of one dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The message's id.
    pub id: String,
    /// Why it was set aside; none where the record does not say, or says something unknown.
    pub reason: Option<Reason>,
    /// The attempts that were made.
    pub attempts: Option<u32>,
}

impl Letter {
    fn of(incoming: &Incoming) -> Self {
        let header = |name| incoming.headers.get(name).map(ToString::to_string);
        let reason = header(known::REASON);
        Self {
            id: incoming.id().into_owned(),
            reason: Reason::ALL.into_iter().find(|known| Some(known.as_str()) == reason.as_deref()),
            attempts: header(known::ATTEMPTS).and_then(|text| text.parse().ok()),
        }
    }
}

/// The dead letters of this run: `expected` of them, or as many as come with no more than `patience` between two, up to
/// 60,000. They are given back: they are yours.
pub(crate) async fn read_back(
    broker: &dyn Broker,
    names: &Names,
    expected: u64,
    patience: Duration,
) -> Result<Vec<Letter>, SubscribeError> {
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    if expected == 0 {
        return Ok(Vec::new());
    }
    // all of them are held at once, and those of earlier runs may be among them
    let limit = NonZeroUsize::new(expected.saturating_add(1_000).min(60_000)).unwrap_or(NonZeroUsize::MIN);
    let request = Subscribe {
        source: Source::queue(names.dead_letters()).group("orders-check"),
        consumer: "check".into(),
        max_in_flight: limit,
        narrow: false,
        // nothing is set aside here; this names no further queue
        dead_letter: Destination::queue(names.dead_letters()),
    };
    let mut subscription = broker.subscribe(request).await?;
    let mut held = Vec::new();
    let mut letters = Vec::new();
    while let (true, Some(room)) = (letters.len() < expected, NonZeroUsize::new(limit.get() - held.len())) {
        let mut batch = Vec::new();
        let next = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch));
        match tokio::time::timeout(patience, next).await {
            Ok(taken) => taken?,
            Err(_) => break,
        }
        let ours = batch.iter().map(Delivery::incoming).filter(|it| names.is_ours(&it.id()));
        letters.extend(ours.map(|incoming| Letter::of(incoming)));
        held.append(&mut batch);
    }
    subscription.stop().await?;
    held.into_iter().for_each(Delivery::release);
    subscription.settler().flush();
    // what is not released by now goes back when the subscription is closed
    drop(subscription.settler().finish().await);
    subscription.close().await?;
    Ok(letters)
}
