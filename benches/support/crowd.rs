//! Many publishers at once.

use tokio::task::JoinSet;

use crate::BoxError;
use crate::meter::{Reading, Spent};
use crate::order::Order;

/// Shares `messages` among `publishers` tasks, each of which publishes one after the other, and waits for the last.
pub(crate) async fn publish<P, F>(
    publishers: u64,
    messages: u64,
    publisher: impl Fn() -> P,
) -> Result<Spent, BoxError>
where
    P: FnMut(Order) -> F + Send + 'static,
    F: Future<Output = Result<(), BoxError>> + Send,
{
    let mut tasks = JoinSet::new();
    let start = Reading::now();
    for number in 0..publishers {
        let mut publish = publisher();
        let share = messages / publishers + u64::from(number < messages % publishers);
        tasks.spawn(async move {
            let order = Order::new(number);
            for id in 0..share {
                publish(Order { id: order.id + id, ..order.clone() }).await?;
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(start.until_now(messages))
}
