//! Reading ahead: letters of a queue, some hundreds in one trip, none of them settled.
//!
//! One consumer at a time, each with a prefetch of as many as it is to bring, and cancelled when it has. So never more is
//! taken than was asked for, whatever is acknowledged meanwhile, and what was brought stays unsettled on the channel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};

use crate::connection::Live;
use crate::error::Trouble;
use crate::operate::counts;
use crate::runtime::within;

/// The first trip, and the largest.
const FIRST: u16 = 64;
const MOST: u16 = 1_024;
/// A trip that brought more bytes than this is followed by a smaller one.
const BYTES: usize = 4 << 20;
/// Whoever needs less than this for a trip's letters may have more, whoever needs longer gets fewer: a broker ends a channel
/// that holds a delivery for too long, half an hour by default.
const QUICK: Duration = Duration::from_secs(2);
const SLOW: Duration = Duration::from_secs(20);
/// How long nothing has to come before the queue is asked how it stands, and how often that may be without anything.
const IDLE: Duration = Duration::from_millis(20);
const ASKED: u32 = 50;

/// A queue, its letters brought here in order.
pub(crate) struct Ahead {
    live: Arc<Live>,
    channel: Channel,
    queue: ShortString,
    size: u16,
    trips: u64,
    brought: VecDeque<Delivery>,
    last: Option<Trip>,
}

/// What is known of the last trip.
struct Trip {
    bytes: usize,
    ended: Instant,
}

impl Ahead {
    pub(crate) fn new(live: Arc<Live>, channel: Channel, queue: ShortString) -> Self {
        Self { live, channel, queue, size: FIRST, trips: 0, brought: VecDeque::new(), last: None }
    }

    /// Letters that are here and were not asked for yet.
    pub(crate) fn waiting(&self) -> usize {
        self.brought.len()
    }

    /// The next letter; at most `left` are taken from the queue for this one and those after it. None when it has no more.
    pub(crate) async fn next(&mut self, left: u64) -> Result<Option<Delivery>, Trouble> {
        if self.brought.is_empty() && left > 0 {
            if let Some(last) = self.last.take() {
                self.size = next_size(self.size, last.bytes, last.ended.elapsed());
            }
            let count = u16::try_from(left).unwrap_or(u16::MAX).min(self.size);
            self.trip(count).await?;
            let bytes = self.brought.iter().map(|letter| letter.data.len()).sum();
            self.last = Some(Trip { bytes, ended: Instant::now() });
        }
        Ok(self.brought.pop_front())
    }

    async fn trip(&mut self, count: u16) -> Result<(), Trouble> {
        let mut consumer = self.consume(count).await?;
        let full = self.bring(&mut consumer, usize::from(count)).await?;
        let cancel = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        self.live.request(cancel).await?;
        while let Some(letter) = consumer.next().await {
            self.brought.push_back(letter?);
        }
        // a queue may hold letters and give its consumers none: to a single active one, it gives all
        if !full && self.brought.is_empty() {
            let get = self.channel.basic_get(self.queue.clone(), BasicGetOptions { no_ack: false });
            self.brought.extend(self.live.request(get).await?.map(|message| message.delivery));
        }
        Ok(())
    }

    /// Brokers give back a closed channel's letters consumer by consumer, in the order of their names.
    async fn consume(&mut self, count: u16) -> Result<Consumer, Trouble> {
        self.live.request(self.channel.basic_qos(count, BasicQosOptions::default())).await?;
        self.trips += 1;
        let tag = ShortString::try_new(format!("walk-{:012}", self.trips)).unwrap_or_default();
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        self.live.request(self.channel.basic_consume(self.queue.clone(), tag, options, none)).await
    }

    /// True when all have come; else the queue had no more, or gave none.
    async fn bring(&mut self, consumer: &mut Consumer, count: usize) -> Result<bool, Trouble> {
        let (mut came, mut asked) = (0, 0);
        while came < count {
            match within(IDLE, consumer.next()).await {
                Ok(Some(letter)) => {
                    self.brought.push_back(letter?);
                    (came, asked) = (came + 1, 0);
                }
                // the broker cancelled it: the queue is gone
                Ok(None) => return Err(Trouble::Late(Duration::ZERO)),
                Err(_) => {
                    let (ready, _) = counts(&self.live, &self.channel, self.queue.as_str()).await?;
                    // what the queue had sent by then is on its way, and comes before the answer to the next question
                    barrier(&self.live, &self.channel).await?;
                    let before = came;
                    while let Some(Some(letter)) = consumer.next().now_or_never() {
                        self.brought.push_back(letter?);
                        came += 1;
                    }
                    asked = if came > before { 0 } else { asked + 1 };
                    if came == before && (ready == 0 || asked == ASKED) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// PURE: how many letters the next trip is to bring, by what the last one brought and how long they lasted.
fn next_size(size: u16, bytes: usize, lasted: Duration) -> u16 {
    if bytes > BYTES || lasted > SLOW {
        return (size / 2).max(1);
    }
    // doubled, it is to stay below the limit
    if lasted < QUICK && bytes <= BYTES / 2 { size.saturating_mul(2).min(MOST) } else { size }
}

/// The broker answers in order: it has handled all that was written before.
pub(crate) async fn barrier(live: &Live, channel: &Channel) -> Result<(), Trouble> {
    live.request(channel.basic_qos(0, BasicQosOptions::default())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_grow_while_letters_are_small_and_used_up_soon() {
        let mut size = FIRST;
        for _ in 0..10 {
            size = next_size(size, usize::from(size) * 256, Duration::from_millis(50));
        }
        assert_eq!(size, MOST);
        assert_eq!(next_size(64, 10, Duration::from_secs(5)), 64);
        assert_eq!(next_size(64, 10, Duration::from_secs(60)), 32);
        assert_eq!(next_size(64, 3 << 20, Duration::ZERO), 64);
        assert_eq!(next_size(64, 64 << 20, Duration::ZERO), 32);
        assert_eq!(next_size(1, 64 << 20, Duration::ZERO), 1);
    }
}
