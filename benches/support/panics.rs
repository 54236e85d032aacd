//! What panicking messages cost the others: the same messages twice, and in one of the runs each hundredth panics.
//!
//! Only the others are counted, from the first to the last. The bare side here is Steadfast as well.

use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use steadfast::prelude::*;
use steadfast::{Outgoing, Publisher};

use crate::contest::{Contest, Side};
use crate::meter::{Meter, Spent};
use crate::order::Order;
use crate::{BoxError, streams};

/// One of so many panics.
const EVERY: u64 = 100;
/// Messages published at once.
const WINDOW: u64 = 500;
const POISON: &str = "each hundredth panics";

/// A hundredth of the messages panic at their only attempt, and go to the dead letters.
#[derive(Debug)]
pub struct Panics {
    name: &'static str,
    url: String,
    messages: u64,
}

impl Panics {
    /// On the broker at this address; the row is called `name`.
    pub fn new(name: &'static str, url: impl Into<String>, messages: u64) -> Self {
        Self { name, url: url.into(), messages }
    }
}

impl Contest for Panics {
    fn name(&self) -> &'static str {
        self.name
    }

    fn messages(&self) -> u64 {
        self.messages
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(run(&self.url, side == Side::Ours, messages))
    }
}

#[derive(Debug, Handler)]
#[handler(Order)]
struct Counting {
    meter: Arc<Meter>,
    panics: bool,
}

impl Handle<Order> for Counting {
    #[expect(clippy::panic, reason = "what it costs is what is measured")]
    async fn handle(&self, order: Order, _: &Context) -> Result<(), Failure> {
        std::hint::black_box(&order);
        if !order.id.is_multiple_of(EVERY) {
            self.meter.count();
        } else if self.panics {
            std::panic::panic_any(POISON);
        }
        Ok(())
    }
}

async fn run(url: &str, panics: bool, messages: u64) -> Result<Spent, BoxError> {
    quiet();
    let broker = steadfast::connect(url).await?;
    let queue = format!("benches.panics.{}", std::process::id());
    broker.declare(&Source::queue(&*queue)).await?;
    // all of them, and before: a publisher at work decides how often a consumer that is faster finds nothing
    publish(&*broker.publisher().await?, &queue, messages).await?;
    let poison = messages.div_ceil(EVERY);
    let (meter, spent) = Meter::new(messages - poison);
    let consumer = Consumer::new("counting", Source::queue(&*queue))
        .handler(move || Counting { meter: Arc::clone(&meter), panics })
        // a retry is another confirmed copy, as the dead letter is, but it may come when the others are done
        .retry(Retry::exponential(200.millis()..30.secs()).max_attempts(1));
    let tree = Supervisor::new("benches").consumer(consumer).start(broker).await?;
    let spent = tokio::select! {
        spent = spent => spent?,
        ended = tree.ended() => return Err(format!("the consumer ended early: {ended:?}").into()),
    };
    // nothing is left behind for the next round
    let dead = || tree.consumers().first().map_or(0, |consumer| consumer.stats.dead_total());
    while panics && dead() < poison {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tree.drain().await?;
    forget(url, &queue).await?;
    Ok(spent)
}

/// A stream keeps what was settled: without this the server's memory would grow from round to round.
async fn forget(url: &str, queue: &str) -> Result<(), BoxError> {
    if url.starts_with("redis") {
        streams::clear(&mut streams::open(url).await?, queue).await?;
    }
    Ok(())
}

async fn publish(publisher: &dyn Publisher, queue: &str, messages: u64) -> Result<(), BoxError> {
    for first in (0..messages).step_by(usize::try_from(WINDOW)?) {
        let sending = (first..messages.min(first + WINDOW)).map(|number| async move {
            publisher.send(Outgoing::new(queue, Order::new(number).encode()?)).await?;
            Ok::<_, BoxError>(())
        });
        join_all(sending).await.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

/// What a program prints of a panic is its own affair, and not measured here.
fn quiet() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&POISON) {
                before(panic);
            }
        }));
    });
}
