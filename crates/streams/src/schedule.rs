//! Publishing for later, through the set that delayed retries wait in.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::Script;
use steadfast_core::{Outgoing, PublishError};

use crate::broker::Streams;
use crate::error;
use crate::group::delay_key;
use crate::publisher::{fields, what};

/// KEYS: delay set. ARGV: `after` or `at`, ms, message id, names and values in turn. A member without a group is for all of
/// them.
static SCHEDULE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local due = tonumber(ARGV[2])
if ARGV[1] == 'after' then
  local time = redis.call('TIME')
  due = due + time[1] * 1000 + math.ceil(time[2] / 1000)
end
local member = { '' }
for i = 3, #ARGV do member[i - 1] = ARGV[i] end
return redis.call('ZADD', KEYS[1], string.format('%.0f', due), cmsgpack.pack(member))",
    )
});

impl Streams {
    /// Publishes a message that appears in its stream after this time, for every group.
    ///
    /// It waits in the sorted set [`Stream::delay_key`](crate::Stream::delay_key) by the server's clock (`ZADD`), safe as
    /// the stream itself is, and any running consumer of the stream moves it when it is due: never early, and on an idle
    /// machine at most 200 ms late. With no consumer running it waits.
    ///
    /// Publishing the same message (same message id, same content) again while it waits changes only when it is due, so
    /// that an outcome that is [`Unknown`](steadfast_core::PublishErrorKind::Unknown) can be tried again.
    ///
    /// ```no_run
    /// # async fn example(broker: &steadfast_streams::Streams) -> Result<(), steadfast_core::PublishError> {
    /// use std::time::Duration;
    /// use steadfast_core::Outgoing;
    ///
    /// let reminder = Outgoing::new("reminders", "{\"order\":7}");
    /// broker.publish_after(reminder, Duration::from_secs(3600)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn publish_after(&self, message: Outgoing, after: Duration) -> Result<(), PublishError> {
        self.schedule(message, "after", after).await
    }

    /// The same at a time, by the server's clock. One that has passed is due at once.
    ///
    /// ```no_run
    /// # async fn example(broker: &steadfast_streams::Streams) -> Result<(), steadfast_core::PublishError> {
    /// use std::time::{Duration, SystemTime};
    /// use steadfast_core::Outgoing;
    ///
    /// let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    /// broker.publish_at(Outgoing::new("reminders", "{\"order\":7}"), tomorrow).await?;
    /// # Ok(()) }
    /// ```
    pub async fn publish_at(&self, message: Outgoing, at: SystemTime) -> Result<(), PublishError> {
        self.schedule(message, "at", at.duration_since(UNIX_EPOCH).unwrap_or_default()).await
    }

    async fn schedule(&self, message: Outgoing, how: &str, time: Duration) -> Result<(), PublishError> {
        let line = self.publishing();
        let name = message.destination.name();
        // a set beside the plain name would be moved by nobody
        self.routes()
            .ask(line, name)
            .await
            .map_err(|error| error::publish(&what(&message, ""), error, false))?;
        let set = delay_key(&self.routes().stream(&message));
        let mut arguments: Vec<Vec<u8>> = [how, &time.as_millis().to_string(), &message.message_id]
            .map(|text| text.as_bytes().to_vec())
            .into();
        fields(&message, |name, value| arguments.extend([name.as_bytes().to_vec(), value.to_vec()]))?;
        let stored = line.run_script(&SCHEDULE, &[&set], &arguments).await;
        stored.map(drop).map_err(|failure| error::publish(&what(&message, ""), failure.error, failure.sent))
    }
}
