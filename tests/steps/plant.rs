//! A queue behind a proxy, and who is at work on it: the worker, or the command that redrives.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use steadfast::streams::Stream;
use steadfast::{Broker, Outgoing, Source};
use steadfast_testbed::{Proxy, unique};
use steadfast_tests::{example, ids, operator, terminate};

use crate::Fault;
use crate::server::{CONSUMER, Server, blocking};

/// Long enough for a busy machine; whatever is waited for ends the wait.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn is_poison(id: usize) -> bool {
    id % 100 == 99
}

pub(crate) fn name(id: usize) -> String {
    format!("m-{id}")
}

pub(crate) struct Plant {
    pub(crate) server: Server,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) queue: String,
    folder: PathBuf,
    running: Option<Child>,
}

impl Plant {
    pub(crate) async fn build(server: Server) -> Self {
        let (proxy, queue) = (Arc::new(server.proxy()), unique("steps"));
        let folder = std::env::temp_dir().join(&queue);
        fs::create_dir(&folder).expect("makes a folder");
        // built before anything waits for them
        blocking(|| (example("worker"), operator())).await;
        Self { server, proxy, queue, folder, running: None }
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.queue)
    }

    async fn broker(&self) -> Arc<dyn Broker> {
        let begun = Instant::now();
        loop {
            match steadfast::connect(&self.server.url()).await {
                Ok(broker) => return broker,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error:?}"),
            }
        }
    }

    pub(crate) async fn publish(&self, messages: Range<usize>) {
        let broker = self.broker().await;
        let source: Source = match self.server {
            Server::Rabbit(_) => Source::queue(&*self.queue),
            Server::Redis(_) => Stream::new(&*self.queue).group("workers").into(),
        };
        broker.declare(&source).await.expect("declares");
        let publisher = broker.publisher().await.expect("publishes");
        for from in messages.clone().step_by(500) {
            let sending = (from..messages.end.min(from + 500)).map(|id| {
                let fail = if is_poison(id) { 99 } else { 0 };
                let mut message =
                    Outgoing::new(&*self.queue, format!(r#"{{"id":"{}","fail":{fail}}}"#, name(id)));
                message.message_id = name(id);
                publisher.send(message)
            });
            for sent in join_all(sending).await {
                sent.expect("published");
            }
        }
        broker.close().await;
    }

    /// Somebody works behind the proxy, from now on if nobody did.
    fn run(&mut self, command: impl Fn(&Self) -> Command) {
        self.proxy.open();
        let ended = |child: &mut Child| child.try_wait().expect("may wait").is_some();
        if self.running.as_mut().is_none_or(ended) {
            self.running = Some(command(self).stdin(Stdio::null()).spawn().expect("starts"));
        }
    }

    pub(crate) fn work(&mut self) {
        self.run(Self::worker);
    }

    /// Until the step that is armed is held: a command that gave up when its broker went is run again.
    pub(crate) async fn redrive(&mut self) {
        let begun = Instant::now();
        loop {
            self.run(Self::redriving);
            let proxy = Arc::clone(&self.proxy);
            match blocking(move || proxy.until_held(Duration::from_secs(1))).await {
                Ok(()) => return,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    /// Waits for the step, and takes away one end while it is held.
    pub(crate) async fn strike(&mut self, fault: Fault) {
        let proxy = Arc::clone(&self.proxy);
        blocking(move || proxy.until_held(PATIENCE)).await.expect("the step is reached");
        match fault {
            Fault::Kill => {
                self.kill();
                self.proxy.cut();
            }
            Fault::Restart => {
                self.proxy.cut();
                self.server.restart().await;
            }
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            // it may have ended by itself
            drop(child.kill());
            child.wait().expect("ends");
        }
    }

    /// SIGTERM to the worker, and its end.
    pub(crate) fn stop(&mut self) {
        let mut child = self.running.take().expect("it runs");
        terminate(child.id());
        assert!(child.wait().expect("ends").success());
    }

    fn worker(&self) -> Command {
        let mut command = Command::new(example("worker"));
        command
            .env("SUT_URL", self.server.url_through(&self.proxy))
            .env("SUT_QUEUE", &self.queue)
            .env("SUT_GROUP", "workers")
            .env("SUT_CONSUMER", CONSUMER)
            // one by one: whose acknowledgement it is must be certain
            .env("SUT_PREFETCH", "1")
            .env("SUT_OUT", self.folder.join("events"))
            .stdout(Stdio::null());
        command
    }

    fn redriving(&self) -> Command {
        let mut command = Command::new(operator());
        command
            .env("STEADFAST_BROKER", self.server.url_through(&self.proxy))
            .current_dir(&self.folder)
            .args(["dead", "redrive", &self.dead(), "--yes", "--json", "--job", "fix", "--ramp", "none"])
            // slow enough that few are under way at once
            .args(["--rate", "20"])
            .stdout(Stdio::null());
        command
    }

    /// Runs the job to its end; the ids of the letters that may have been sent, and were not sent again.
    pub(crate) async fn finish_redrive(&mut self, resend: bool) -> BTreeSet<String> {
        self.kill();
        self.proxy.open();
        let begun = Instant::now();
        loop {
            let mut command = self.redriving();
            command.stdout(Stdio::piped()).args(resend.then_some("--resend-uncertain"));
            let output = blocking(move || command.output().expect("runs")).await;
            let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if matches!(output.status.code(), Some(0 | 4)) {
                let ids = report["uncertain"].as_array().cloned().unwrap_or_default();
                return ids.iter().map(|id| id.as_str().unwrap_or_default().to_owned()).collect();
            }
            assert!(begun.elapsed() < PATIENCE, "{output:?}");
        }
    }

    /// Ids that the worker finished.
    pub(crate) fn done(&self) -> BTreeSet<String> {
        let events = fs::read_to_string(self.folder.join("events")).expect("is there");
        let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let done = events.filter(|event| event["ev"] == "done");
        done.map(|event| event["id"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Until all are done or dead, and nothing is left anywhere else. What a broker counts may be old or not known, so what
    /// lies in the dead letters is looked at.
    pub(crate) async fn until_quiet(&self, messages: usize) {
        let begun = Instant::now();
        let sound = messages - messages / 100;
        loop {
            let (done, open) = (self.done().len(), self.server.open(&self.queue).await);
            // a stream comes into being with its first letter
            let dead: BTreeSet<String> = if done >= sound && open == 0 {
                self.ids(&self.dead()).await.into_iter().collect()
            } else {
                BTreeSet::new()
            };
            if dead.len() >= messages / 100 {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{done} of {sound} are done, {} are dead, {open} are open",
                dead.len()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Ids of all that lies in a queue or a stream.
    pub(crate) async fn ids(&self, place: &str) -> Vec<String> {
        let broker = self.broker().await;
        let ids = ids(&*broker.operator().expect("has one"), place).await;
        broker.close().await;
        ids
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.kill();
        // a folder that stays in the temporary one does no harm
        drop(fs::remove_dir_all(&self.folder));
    }
}
