//! [`Stream`] and [`Group`], what they default to, and making sure that they exist.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::streams::StreamInfoGroupsReply;
use redis::{RedisError, cmd};
use steadfast_core::{Destination, Source, SubscribeError, SubscribeErrorKind, Token};

use crate::connection::Line;
use crate::error;
use crate::pending::id;
use crate::resume::before;
use crate::retention::Retention;

/// The group of a [`Source`] that names none.
pub(crate) const DEFAULT_GROUP: &str = "steadfast";

/// A stream, to be consumed by a group.
///
/// ```
/// use std::time::Duration;
/// use steadfast_core::Source;
/// use steadfast_streams::{From, Stream};
///
/// let source: Source = Stream::new("orders")
///     .group("billing")
///     .start(From::End)
///     .min_idle(Duration::from_secs(30))
///     .into();
/// assert_eq!(&**source.name(), "orders");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    name: Arc<str>,
}

impl Stream {
    /// The stream with this key.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into() }
    }

    /// The sorted set in which this stream's retries and scheduled messages wait: the score is when they are due, in
    /// milliseconds since 1970 by the server's clock. It shares the stream's hash slot.
    ///
    /// ```
    /// use steadfast_streams::Stream;
    ///
    /// assert_eq!(Stream::new("orders").delay_key(), "{orders}:delay");
    /// assert_eq!(Stream::new("shop:{eu}:orders").delay_key(), "shop:{eu}:orders:delay");
    /// ```
    pub fn delay_key(&self) -> String {
        delay_key(&self.name)
    }

    /// The consumer group of this name on it, with the defaults for all else.
    pub fn group(self, group: impl Into<Arc<str>>) -> Group {
        Group {
            stream: self.name,
            name: group.into(),
            consumer: None,
            start: From::Beginning,
            until: None,
            rate: None,
            min_idle: Duration::from_secs(60),
            reap_idle: None,
            retain: None,
            retain_dead: None,
            block: Duration::from_secs(2),
        }
    }
}

impl std::convert::From<Stream> for Source {
    /// The group is `steadfast`.
    fn from(stream: Stream) -> Self {
        stream.group(DEFAULT_GROUP).into()
    }
}

/// Where a group begins when it is created (`XGROUP CREATE`). A group that exists goes on where it was, and one that was
/// destroyed while this process read it is made again to go on after the last entry that was settled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum From {
    /// With the oldest entry in the stream (`0`). The default.
    Beginning,
    /// With the first entry added from now on (`$`).
    End,
    /// After the entry with this ID, given as its milliseconds and its sequence number.
    Id(u64, u64),
    /// With the first entry that was added at this time or later, by the clock of the server.
    Time(SystemTime),
}

/// Where a group's part of the stream ends; see [`Group::until`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// With the entry of this ID, given as its milliseconds and its sequence number.
    Id(u64, u64),
    /// With the last entry that was added before this time, by the clock of the server.
    Time(SystemTime),
}

impl Until {
    /// Whether the entry of this ID is before the end.
    pub(crate) fn includes(self, token: Token) -> bool {
        match self {
            Self::Id(ms, sequence) => token <= Token(ms, sequence),
            Self::Time(time) => {
                let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                u128::from(token.0) < since.as_millis()
            }
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beginning => f.write_str("0"),
            Self::End => f.write_str("$"),
            Self::Id(ms, sequence) => write!(f, "{ms}-{sequence}"),
            Self::Time(time) => {
                let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                let first = Token(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), 0);
                f.write_str(&id(before(first)))
            }
        }
    }
}

/// A consumer group on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub(crate) stream: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) consumer: Option<Arc<str>>,
    pub(crate) start: From,
    pub(crate) until: Option<Until>,
    pub(crate) rate: Option<NonZeroU32>,
    pub(crate) min_idle: Duration,
    pub(crate) reap_idle: Option<Duration>,
    pub(crate) retain: Option<Retention>,
    pub(crate) retain_dead: Option<Retention>,
    pub(crate) block: Duration,
}

impl Group {
    /// The name of this consumer in the group. Default: unique to each subscription, made of host, process id and a nonce,
    /// and removed from the group when the subscription ends with nothing pending.
    ///
    /// A stable name finds its own pending entries again after a crash, instead of after [`min_idle`](Self::min_idle). It is
    /// leased: a second living consumer of the same name is refused with an error that names the first. The lease
    /// ([`lease_key`](Self::lease_key)) of an owner that died lapses within 6 s, and until then a successor waits for it.
    #[must_use]
    pub fn consumer_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Where the group begins if it is created now. Default: [`From::Beginning`].
    #[must_use]
    pub fn start(mut self, from: From) -> Self {
        self.start = from;
        self
    }

    /// Where a replay ends: what lies behind is acknowledged unseen. With [`start`](Self::start) and a group of its own, a
    /// handler goes through a part of the stream again, beside the groups that read it. Default: there is no end.
    ///
    /// The group stays until somebody destroys it (`XGROUP DESTROY`).
    ///
    /// ```
    /// use std::num::NonZeroU32;
    /// use std::time::{Duration, SystemTime};
    /// use steadfast_streams::{From, Stream, Until};
    ///
    /// let now = SystemTime::now();
    /// let yesterday_again = Stream::new("orders")
    ///     .group("billing-again")
    ///     .start(From::Time(now - Duration::from_secs(24 * 3600)))
    ///     .until(Until::Time(now))
    ///     .rate(NonZeroU32::new(200).expect("not zero"));
    /// # let _ = yesterday_again;
    /// ```
    #[must_use]
    pub fn until(mut self, until: Until) -> Self {
        self.until = Some(until);
        self
    }

    /// Most entries that each consumer of this group takes in a second, for a replay that is to leave room for what is new.
    /// Default: no limit.
    #[must_use]
    pub fn rate(mut self, per_second: NonZeroU32) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// How long an entry must be without a sign of life from its consumer before another takes it over (`XAUTOCLAIM`).
    /// Default 60 s, at least 50 ms. A slow handler gives signs of life by itself, three times in this time.
    #[must_use]
    pub fn min_idle(mut self, min_idle: Duration) -> Self {
        self.min_idle = min_idle.max(Duration::from_millis(50));
        self
    }

    /// How long a consumer name must be idle before any other consumer of the group takes it out, if nothing is pending
    /// under it (`XGROUP DELCONSUMER`). Default: twice [`min_idle`](Self::min_idle), at least 10 s. Concerns only the unique
    /// names that Steadfast gives; one whose consumer was only asleep comes back with its next read.
    #[must_use]
    pub fn reap_after(mut self, idle: Duration) -> Self {
        self.reap_idle = Some(idle);
        self
    }

    /// Trims the stream to this while it is consumed, every second, and never an entry that any of its groups still needs:
    /// see [`Streams::trim`](crate::Streams::trim). Default: nothing is trimmed.
    #[must_use]
    pub fn retain(mut self, retention: Retention) -> Self {
        self.retain = Some(retention);
        self
    }

    /// Trims the dead letters to this in the same way. Where no group reads the dead-letter stream, only this says what
    /// goes. Default: nothing is trimmed.
    #[must_use]
    pub fn retain_dead_letters(mut self, retention: Retention) -> Self {
        self.retain_dead = Some(retention);
        self
    }

    /// Longest that one read waits at the server (`BLOCK`). Default 2 s, from 10 ms to 5 s; never longer than until the
    /// next look for entries to take over, which is due every second, or every half [`min_idle`](Self::min_idle).
    #[must_use]
    pub fn block(mut self, block: Duration) -> Self {
        self.block = block.clamp(Duration::from_millis(10), Duration::from_secs(5));
        self
    }

    /// The sorted set in which this stream's retries wait: the score is when they are due, in milliseconds since 1970 by
    /// the server's clock. It shares the stream's hash slot.
    ///
    /// ```
    /// use steadfast_streams::Stream;
    ///
    /// assert_eq!(Stream::new("orders").group("billing").delay_key(), "{orders}:delay");
    /// assert_eq!(Stream::new("shop:{eu}:orders").group("billing").delay_key(), "shop:{eu}:orders:delay");
    /// ```
    pub fn delay_key(&self) -> String {
        delay_key(&self.stream)
    }

    /// The key that says which process has this consumer name: the value is its host, process id and a nonce.
    ///
    /// ```
    /// use steadfast_streams::Stream;
    ///
    /// assert_eq!(Stream::new("orders").group("billing").lease_key("till-1"), "{orders}:owner:billing:till-1");
    /// ```
    pub fn lease_key(&self, consumer: &str) -> String {
        beside(&self.stream, &format!("owner:{}:{consumer}", self.name))
    }

    pub(crate) fn reap_idle(&self) -> Duration {
        self.reap_idle.unwrap_or_else(|| (self.min_idle * 2).max(Duration::from_secs(10)))
    }

    /// How often to look for entries to take over.
    pub(crate) fn claim_interval(&self) -> Duration {
        Duration::from_secs(1).min(self.min_idle / 2)
    }

    /// What a portable or native source asks of this broker.
    pub(crate) fn of(source: &Source) -> Result<Self, SubscribeError> {
        if let Some(group) = source.native::<Self>() {
            let mut group = group.clone();
            if let Some(name) = source.group_name() {
                group.name = Arc::clone(name);
            }
            return Ok(group);
        }
        if source.has_native() {
            return Err(SubscribeError::new(
                SubscribeErrorKind::Unsupported,
                format!(
                    "subscribe to `{}`: the source was made for another broker; give Redis a `streams::Stream` or a \
                     plain `Source::queue`",
                    source.name()
                ),
            ));
        }
        let group = source.group_name().map_or_else(|| DEFAULT_GROUP.into(), Arc::clone);
        Ok(Stream { name: Arc::clone(source.name()) }.group(group))
    }

    /// Entries that were not delivered to any consumer of the group; none where the server cannot tell, as after entries in
    /// the middle of the stream were deleted.
    pub(crate) async fn lag(&self, line: &Line) -> Option<u64> {
        let mut info = cmd("XINFO");
        info.arg("GROUPS").arg(&*self.stream);
        let groups: StreamInfoGroupsReply = line.query(&self.stream, &info).await.ok()?;
        let group = groups.groups.into_iter().find(|group| *group.name == *self.name)?;
        group.lag.and_then(|lag| u64::try_from(lag).ok())
    }

    /// Makes sure that stream and group exist: `XGROUP CREATE … MKSTREAM`. One that exists already is as good.
    pub(crate) async fn declare(&self, line: &Line) -> Result<(), SubscribeError> {
        if !line.server().are_together(&self.stream, &self.delay_key()) {
            let what = format!(
                "create the group: group `{}` of stream `{}`: the name has a brace that is not around a tag, so that in a \
                 cluster the stream and its retries are on different nodes; take a name like `{{shop}}:orders`",
                self.name, self.stream
            );
            return Err(SubscribeError::new(SubscribeErrorKind::Unsupported, what));
        }
        let lost = line.resume().point(self);
        let start = lost.map_or(self.start, |Token(ms, sequence)| From::Id(ms, sequence));
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&*self.stream).arg(&*self.name).arg(start.to_string()).arg("MKSTREAM");
        match line.query::<()>(&self.stream, &create).await {
            Ok(()) if lost.is_some() => {
                tracing::warn!(stream = %self.stream, group = %self.name, %start, "the group was lost and is made again");
            }
            Ok(()) => tracing::info!(stream = %self.stream, group = %self.name, %start, "created the group"),
            Err(error) if error.code() == Some("BUSYGROUP") => {}
            Err(error) => return Err(self.failed("create the group", error)),
        }
        line.resume().found(self);
        Ok(())
    }

    pub(crate) fn failed(&self, what: &str, error: RedisError) -> SubscribeError {
        error::subscribe(&format!("{what}: group `{}` of stream `{}`", self.name, self.stream), error, false)
    }
}

impl std::convert::From<Group> for Source {
    fn from(group: Group) -> Self {
        Self::queue(Arc::clone(&group.stream)).group(Arc::clone(&group.name)).with_native(group)
    }
}

/// Finds out before the first failure whether dead letters can be stored there.
pub(crate) async fn check_dead_letters(line: &Line, destination: &Destination) -> Result<(), SubscribeError> {
    if let Some(exchange) = destination.exchange_name() {
        return Err(SubscribeError::new(
            SubscribeErrorKind::Unsupported,
            format!(
                "send dead letters to exchange `{exchange}`: Redis has no exchanges; name a stream with \
                 `Destination::queue`"
            ),
        ));
    }
    let key = destination.name();
    let kind: String = line.query(key, cmd("TYPE").arg(key)).await.map_err(|error| {
        error::subscribe(&format!("look at the dead-letter stream `{key}`"), error, false)
    })?;
    match kind.as_str() {
        "none" | "stream" => Ok(()),
        other => Err(SubscribeError::new(
            SubscribeErrorKind::Mismatch,
            format!("send dead letters to `{key}`: it must be a stream, and is a {other}"),
        )),
    }
}

/// The sorted set in which retries and scheduled messages of a stream wait.
pub(crate) fn delay_key(stream: &str) -> String {
    beside(stream, "delay")
}

/// A key in the stream's hash slot.
pub(crate) fn beside(stream: &str, suffix: &str) -> String {
    // a key hashes by what is between its first { and the next }, if that is not empty; otherwise as a whole
    let tagged = stream
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .is_some_and(|(tag, _)| !tag.is_empty());
    // a brace that tags nothing would make a tag of its own in the wrapped name
    if tagged || stream.contains(['{', '}']) {
        format!("{stream}:{suffix}")
    } else {
        format!("{{{stream}}}:{suffix}")
    }
}

/// Whole milliseconds, at least one, as Redis takes them.
pub(crate) fn millis(duration: Duration) -> u64 {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    NonZeroU64::new(millis).map_or(1, NonZeroU64::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_of_another_broker_is_refused_with_the_way_out() {
        let error = Group::of(&Source::queue("q").with_native(7_u8)).expect_err("foreign");
        assert_eq!(error.kind(), SubscribeErrorKind::Unsupported);
        assert!(error.to_string().contains("streams::Stream"), "{error}");
    }

    #[test]
    fn a_plain_source_has_a_group() {
        let group = Group::of(&Source::queue("orders")).expect("plain");
        assert_eq!((&*group.stream, &*group.name, group.start), ("orders", "steadfast", From::Beginning));
        let source: Source = Stream::new("orders").group("billing").min_idle(Duration::from_secs(5)).into();
        assert_eq!(Group::of(&source).expect("ours").min_idle, Duration::from_secs(5));
    }
}
