//! Looking on at a stream: what is added from now on, read without a group.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{RedisError, Value, cmd};
use steadfast_core::{Destination, Follow, Incoming, OperateError, OperateErrorKind, Source};

use crate::connection::Line;
use crate::group::Group;
use crate::headers::receive;
use crate::operate::{StreamOperator, last_id, operating};
use crate::pending::{id, read_entries};

/// How often it is asked: a read that waits would hold up whatever else is asked over the same connection.
const OFTEN: Duration = Duration::from_millis(250);

struct StreamFollow {
    line: Arc<Line>,
    stream: Arc<str>,
    after: tokio::sync::Mutex<String>,
}

impl StreamOperator {
    pub(crate) async fn look_on(&self, place: &Destination) -> Result<Arc<dyn Follow>, OperateError> {
        let stream = place.name();
        if place.exchange_name().is_some() {
            let what = format!("follow `{place}`: Redis has no exchanges; name a stream");
            return Err(OperateError::new(OperateErrorKind::Unsupported, what));
        }
        let last = last_id(&self.line, stream)
            .await
            .map_err(|error| operating(&format!("follow stream `{stream}`"), error))?;
        let after = tokio::sync::Mutex::new(last);
        Ok(Arc::new(StreamFollow { line: Arc::clone(&self.line), stream: stream.into(), after }))
    }

    pub(crate) async fn remove(&self, place: &Source) -> Result<(), OperateError> {
        let what = format!("delete stream `{}`", place.name());
        let group = Group::of(place).map_err(|error| {
            OperateError::new(OperateErrorKind::Unsupported, what.as_str()).with_source(error)
        })?;
        let mut unlink = cmd("UNLINK");
        unlink.arg(&*group.stream).arg(group.delay_key());
        self.line
            .query::<u64>(&group.stream, &unlink)
            .await
            .map(drop)
            .map_err(|error| operating(&what, error))
    }
}

impl StreamFollow {
    async fn page(&self) -> Result<Vec<Arc<Incoming>>, OperateError> {
        let mut after = self.after.lock().await;
        loop {
            let mut range = cmd("XRANGE");
            range.arg(&*self.stream).arg(format!("({after}")).arg("+").arg("COUNT").arg(100);
            let answer: Result<Value, RedisError> = self.line.query(&self.stream, &range).await;
            let entries = answer
                .and_then(read_entries)
                .map_err(|error| operating(&format!("follow stream `{}`", self.stream), error))?;
            if let Some(last) = entries.last() {
                *after = id(last.token);
                let seen = entries.into_iter().map(|entry| {
                    let fields = entry.fields.unwrap_or_default();
                    Arc::new(receive(&self.stream, entry.id, entry.token, fields).incoming)
                });
                return Ok(seen.collect());
            }
            tokio::time::sleep(OFTEN).await;
        }
    }
}

impl Follow for StreamFollow {
    fn next(&self) -> BoxFuture<'_, Result<Vec<Arc<Incoming>>, OperateError>> {
        Box::pin(self.page())
    }
}
