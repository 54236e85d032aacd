//! The operator's side: looking at a queue, and a walk through one. Nothing is taken until it is moved.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use futures_util::future::BoxFuture;
use steadfast_core::{
    Forward, Forwarded, Headers, Incoming, Inspection, Letter, OperateError, OperateErrorKind, Operator,
    Origin, Source, Token, Walk, known,
};

use crate::connection::Connection;
use crate::queue::Queue;

#[derive(Debug)]
pub(crate) struct EmbeddedOperator {
    pub(crate) connection: Arc<Connection>,
}

impl EmbeddedOperator {
    fn queue(&self, name: &str) -> Result<Arc<Queue>, OperateError> {
        self.connection.hub().find(name).ok_or_else(|| {
            let what = format!(
                "look at queue `{name}`: it is not there; an embedded broker is seen only by the process that it is in"
            );
            OperateError::new(OperateErrorKind::NotFound, what)
        })
    }
}

impl Operator for EmbeddedOperator {
    fn inspect<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<Inspection, OperateError>> {
        Box::pin(async move {
            let queue = self.queue(source.name())?;
            let (depth, ready, delayed) = (queue.depth(), queue.ready(), queue.delayed());
            let mut inspection = Inspection::new("queue", source.name());
            inspection.length = Some(depth as u64);
            inspection.ready = Some(ready as u64);
            inspection.delayed = Some(delayed as u64);
            inspection.unsettled = Some(depth.saturating_sub(ready + delayed) as u64);
            Ok(inspection)
        })
    }

    fn walk<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<Arc<dyn Walk>, OperateError>> {
        Box::pin(async move {
            let queue = self.queue(place)?;
            let (total, end) = queue.extent();
            let connection = Arc::clone(&self.connection);
            let walk = EmbeddedWalk { connection, queue, total: total as u64, end, next: Mutex::new(0) };
            Ok(Arc::new(walk) as Arc<dyn Walk>)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[derive(Debug)]
struct EmbeddedWalk {
    connection: Arc<Connection>,
    queue: Arc<Queue>,
    total: u64,
    /// The position after the last message that was there when the walk began.
    end: u64,
    next: Mutex<u64>,
}

impl EmbeddedWalk {
    fn send(&self, letter: &Letter, forward: &Forward) -> Result<Forwarded, OperateError> {
        let not_stored = |why: &str| {
            let what = format!("move a letter of queue `{}` to `{}`: {why}", self.queue.name(), forward.to);
            Err(OperateError::new(OperateErrorKind::NotStored, what))
        };
        if forward.to.exchange_name().is_some() {
            return not_stored("the embedded broker has no exchanges; name a queue");
        }
        let Some(to) = self.connection.hub().find(forward.to.name()) else {
            return not_stored("there is no such queue; declare it first");
        };
        if !to.try_reserve() {
            return not_stored("it is full");
        }
        let Some(message) = self.queue.remove(letter.mark.0) else {
            to.free(1);
            return Ok(Forwarded::Gone);
        };
        to.push(Arc::new(changed(&message, forward, &to)));
        self.queue.free(1);
        Ok(Forwarded::Moved)
    }
}

impl Walk for EmbeddedWalk {
    fn total(&self) -> u64 {
        self.total
    }

    fn atomic(&self) -> bool {
        true
    }

    fn next(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, OperateError>> {
        Box::pin(async move {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let page = self.queue.browse(*next..self.end, limit);
            if let Some((last, _)) = page.last() {
                *next = last + 1;
            }
            Ok(page.into_iter().map(|(at, message)| Letter { mark: Token(at, 0), message }).collect())
        })
    }

    fn forward<'a>(
        &'a self,
        letter: &'a Letter,
        forward: &'a Forward,
    ) -> BoxFuture<'a, Result<Forwarded, OperateError>> {
        Box::pin(async move { self.send(letter, forward) })
    }

    fn discard(&self, mark: Token) -> BoxFuture<'_, Result<bool, OperateError>> {
        let removed = self.queue.remove(mark.0).is_some();
        self.queue.free(usize::from(removed));
        Box::pin(std::future::ready(Ok(removed)))
    }

    fn keep(&self, _: Token) {}

    fn returned<'a>(&'a self, job: &'a str) -> BoxFuture<'a, Result<u64, OperateError>> {
        Box::pin(async move {
            let came = self.queue.browse(self.end..u64::MAX, usize::MAX);
            let ours = |headers: &Headers| headers.text(known::REDRIVE_JOB).ok().flatten() == Some(job);
            Ok(came.iter().filter(|(_, message)| ours(&message.headers)).count() as u64)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), OperateError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn changed(message: &Incoming, forward: &Forward, to: &Queue) -> Incoming {
    let mut copy = message.clone();
    if forward.restore {
        copy.headers = Headers::new();
        for (name, value) in message.headers.iter() {
            if !known::is_record(name) && !known::is_of_attempts(name) {
                copy.headers.push(name.to_owned(), value.clone());
            }
        }
    }
    copy.headers.merge(&forward.set);
    if let Some(payload) = &forward.payload {
        copy.payload = payload.clone();
    }
    if let Some(id) = &forward.message_id {
        copy.message_id = Some(id.clone());
    }
    copy.redelivered = false;
    copy.delivery_count = Some(0);
    copy.origin = Origin { source: Arc::clone(to.name()), ..Origin::default() };
    copy
}
