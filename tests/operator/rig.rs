//! A source with its dead letters on a shared server, and the command beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use steadfast::{Broker, Operator, Outgoing, Source, known};
use steadfast_testbed::{shared, unique};
use steadfast_tests::{ids, operator};

/// Long enough for a busy machine; whatever is waited for ends the wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Rig {
    pub(crate) url: &'static str,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) queue: String,
    pub(crate) folder: PathBuf,
}

impl Rig {
    pub(crate) async fn rabbit() -> Self {
        Self::at(tokio::task::spawn_blocking(shared::rabbit_url).await.expect("starts")).await
    }

    pub(crate) async fn redis() -> Self {
        Self::at(tokio::task::spawn_blocking(shared::redis_url).await.expect("starts")).await
    }

    pub(crate) async fn redis_cluster() -> Self {
        Self::at(tokio::task::spawn_blocking(shared::redis_cluster_url).await.expect("starts")).await
    }

    async fn at(url: &'static str) -> Self {
        let broker = steadfast::connect(url).await.expect("connects");
        let operator = broker.operator().expect("has one");
        let queue = unique("operated");
        let folder = std::env::temp_dir().join(&queue);
        std::fs::create_dir(&folder).expect("makes a folder");
        let rig = Self { url, broker, operator, queue, folder };
        for place in [rig.queue.clone(), rig.dead()] {
            rig.broker.declare(&Source::queue(place)).await.expect("declares");
        }
        rig
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.queue)
    }

    pub(crate) fn is_redis(&self) -> bool {
        self.broker.scheme() == "redis"
    }

    /// Dead letters with a record, ids `m-0` and on.
    pub(crate) async fn letters(&self, count: usize) {
        let publisher = self.broker.publisher().await.expect("publishes");
        for from in (0..count).step_by(500) {
            let sending = (from..count.min(from + 500)).map(|number| publisher.send(self.letter(number)));
            for sent in join_all(sending).await {
                sent.expect("published");
            }
        }
    }

    fn letter(&self, number: usize) -> Outgoing {
        let mut letter = Outgoing::new(self.dead(), format!("{{\"id\":{number}}}"));
        letter.message_id = format!("m-{number}");
        letter.message_type = Some("order.placed".to_owned());
        letter
            .headers
            .set(known::REASON, "exhausted")
            .set(known::SOURCE, self.queue.as_str())
            .set(known::CONSUMER, "billing")
            .set(
                known::FINGERPRINT,
                if number.is_multiple_of(2) { "00000000000000aa" } else { "00000000000000bb" },
            )
            .set(known::ERROR_CHAIN, "the ledger is closed")
            .set(known::RETRY_COUNT, 5_i64)
            .set(known::ATTEMPTS, 5_i64)
            .set(known::REDRIVE_COUNT, 0_i64)
            .set(known::LAST_FAILURE, 1_700_000_000_000_i64);
        letter
    }

    /// The command, told which broker; a journal and files go into a folder of this test.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(operator());
        command.env("STEADFAST_BROKER", self.url).current_dir(&self.folder).args(arguments);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().expect("runs"));
        Ran::of(&output.await.expect("runs"))
    }

    /// Ids of all that lies in a queue or a stream, in order.
    pub(crate) async fn ids(&self, place: &str) -> Vec<String> {
        ids(&*self.operator, place).await
    }

    pub(crate) async fn ready(&self, place: &str) -> u64 {
        let inspection = self.operator.inspect(&Source::queue(place)).await.expect("looks");
        inspection.length.or(inspection.ready).expect("is told")
    }

    pub(crate) async fn until(&self, what: &str, mut reached: impl AsyncFnMut() -> bool) {
        let start = Instant::now();
        while !reached().await {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        Path::new(&self.folder).join(file)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // a folder that stays in the temporary one does no harm
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What the command said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| unreachable!("{error}: {self:?}"))
    }
}
