//! What the broker is told of a delivery, and telling it. Settling consumes the delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::dead_letter::{DeadLetter, Reason};
use crate::delivery::Delivery;
use crate::error::{SettleError, SettleErrorKind};
use crate::headers::{Headers, known};
use crate::outcome::Failure;

/// How a delivery ends.
#[derive(Debug)]
pub(crate) enum Settlement {
    /// Done.
    Ack,
    /// A copy comes back after this long, with one attempt more counted.
    Retry { after: Duration, failure: Failure },
    /// A copy comes back after this long, unchanged.
    Snooze(Duration),
    /// To the dead letters.
    DeadLetter(Reason, Arc<Failure>),
    /// Acknowledged on purpose without having been handled.
    Drop(Failure),
}

/// A copy of the message that is to come back: body and properties untouched, these headers set over its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Requeue {
    /// How long it stays away.
    pub after: Duration,
    /// Headers to set over the message's own; empty for a snooze.
    pub headers: Headers,
}

impl Requeue {
    /// The copy that counts one failed attempt more.
    pub(crate) fn failed(delivery: &Delivery, after: Duration, failure: &Failure, now: SystemTime) -> Self {
        let incoming = delivery.incoming();
        let mut headers = Headers::new();
        headers.set(known::RETRY_COUNT, incoming.headers.retry_count().unwrap_or(0).saturating_add(1));
        headers.set(known::ERROR, cut(&failure.chain(), 1024));
        if incoming.headers.get(known::FIRST_FAILURE).is_none() {
            headers.set(known::FIRST_FAILURE, millis(now));
        }
        headers.set(known::LAST_FAILURE, millis(now));
        Self { after, headers }
    }

    /// The copy that comes back as it went.
    pub(crate) fn snoozed(after: Duration) -> Self {
        Self { after, headers: Headers::new() }
    }
}

/// Makes the copy safe, then settles the delivery, which the caller disarms after it. While it cannot be stored the
/// delivery stays ours and it is tried again, ever more slowly; it ends only when it is stored or when the delivery is no
/// longer ours.
pub(crate) async fn requeue(
    delivery: &Delivery,
    requeue: &Requeue,
    patience: &Patience,
) -> Result<(), SettleError> {
    let (token, Some(settler)) = (delivery.token(), delivery.settler()) else { return Ok(()) };
    patience.until_stored(|| settler.requeue(delivery.incoming(), token, requeue)).await
}

/// The same for a dead letter, and disarms it.
pub(crate) async fn dead_letter(
    delivery: Delivery,
    letter: &DeadLetter,
    patience: &Patience,
) -> Result<(), SettleError> {
    let (token, Some(settler)) = (delivery.token(), delivery.settler().cloned()) else { return Ok(()) };
    let stored = patience.until_stored(|| settler.dead_letter(delivery.incoming(), token, letter)).await;
    delivery.disarm();
    stored
}

/// Goes on trying to store copies, and says so where it is known of: as the trouble of their consumer.
#[derive(Clone)]
pub(crate) struct Patience {
    say: Arc<dyn Fn(Option<String>) + Send + Sync>,
    /// Copies that could not be stored so far.
    unstored: Arc<AtomicUsize>,
}

impl Patience {
    pub(crate) fn new(trouble: impl Fn(Option<String>) + Send + Sync + 'static) -> Self {
        Self { say: Arc::new(trouble), unstored: Arc::default() }
    }

    async fn until_stored<F>(&self, mut store: impl FnMut() -> F) -> Result<(), SettleError>
    where
        F: Future<Output = Result<(), SettleError>>,
    {
        let mut wait = Duration::from_millis(100);
        let mut told = None;
        loop {
            let error = match store().await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == SettleErrorKind::Gone => return Err(error),
                Err(error) => error,
            };
            let text = format!("cannot set a message aside: {error}{}", error_source(&error));
            tracing::warn!(target: "steadfast", error = text, again_in = ?wait, "message.not_stored");
            told.get_or_insert_with(|| Told::of(self));
            (self.say)(Some(text));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }
}

/// One copy's trouble. The last one takes it back, however the trying ends: stored, no longer ours, or dropped with its
/// session.
struct Told<'a>(&'a Patience);

impl<'a> Told<'a> {
    fn of(patience: &'a Patience) -> Self {
        patience.unstored.fetch_add(1, Ordering::Relaxed);
        Self(patience)
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if self.0.unstored.fetch_sub(1, Ordering::Relaxed) == 1 {
            (self.0.say)(None);
        }
    }
}

fn error_source(error: &SettleError) -> String {
    std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default()
}

/// Milliseconds since 1970.
pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(since).unwrap_or(i64::MAX)
}

/// The longest prefix of at most `limit` bytes that ends between characters.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Tries with these answers, then for ever in vain; whether each thing said was trouble.
    async fn said(answers: &[SettleErrorKind]) -> Vec<bool> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let patience = Patience::new({
            let said = Arc::clone(&said);
            move |trouble: Option<String>| said.lock().expect("whole").push(trouble.is_some())
        });
        let mut answers = answers.iter().copied();
        let store = || {
            let kind = answers.next().unwrap_or(SettleErrorKind::NotStored);
            std::future::ready(Err(SettleError::new(kind, "store a copy")))
        };
        let ended = tokio::time::timeout(Duration::from_secs(1), patience.until_stored(store)).await;
        assert!(!matches!(ended, Ok(Ok(()))));
        let said = said.lock().expect("whole");
        said.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_lasts_as_long_as_one_copy_is_not_stored() {
        let (trouble, seen) = tokio::sync::watch::channel(false);
        let patience = Patience::new(move |text: Option<String>| {
            trouble.send_replace(text.is_some());
        });
        let store = |failures: u32| {
            let (patience, mut left) = (patience.clone(), failures);
            async move {
                let store = || {
                    let kind = if left == 0 { SettleErrorKind::Gone } else { SettleErrorKind::NotStored };
                    left = left.saturating_sub(1);
                    std::future::ready(Err(SettleError::new(kind, "store a copy")))
                };
                patience.until_stored(store).await
            }
        };
        let longer = tokio::spawn(store(5));
        assert!(store(1).await.is_err() && *seen.borrow());
        assert!(longer.await.expect("runs").is_err() && !*seen.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_ends_with_the_trying_however_that_ends() {
        use SettleErrorKind::{Gone, NotStored};
        assert_eq!(said(&[Gone]).await, [false; 0]);
        assert_eq!(said(&[NotStored, Gone]).await, [true, false]);
        let dropped = said(&[]).await;
        assert_eq!(dropped.last(), Some(&false));
        assert!(dropped[..dropped.len() - 1].iter().all(|trouble| *trouble), "{dropped:?}");
    }
}
