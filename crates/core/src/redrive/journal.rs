//! What a job intended and did, so that it can be resumed: lines of JSON, each on the disk before what follows from it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::RedriveError;

/// The memory of one redrive job: a file, or nothing that outlives the process.
///
/// A file must not be used by two processes at once. It grows by about 150 bytes for each message.
///
/// ```
/// use steadfast_core::Journal;
///
/// let path = std::env::temp_dir().join(format!("steadfast-doc-{}.journal", std::process::id()));
/// let journal = Journal::open(&path, "ledger-fix")?;
/// assert_eq!(journal.sent(), 0);
/// drop(journal);
/// // another job must not go on with it
/// assert!(Journal::open(&path, "other").is_err());
/// std::fs::remove_file(path)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Journal {
    file: Option<(Arc<File>, PathBuf)>,
    intended: HashSet<String>,
    sent: HashSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Job(String),
    Intended(Vec<String>),
    Sent(Vec<String>),
    NotSent(Vec<String>),
}

impl Journal {
    /// A journal that ends with the process: a job that crashes cannot be resumed, and begins again.
    pub fn in_memory() -> Self {
        Self { file: None, intended: HashSet::new(), sent: HashSet::new() }
    }

    /// The journal in this file: a new one, or that of an earlier run of the same job, to go on with.
    ///
    /// It reads and writes a local file: call it where that may block, at start.
    pub fn open(path: impl Into<PathBuf>, job: &str) -> Result<Self, RedriveError> {
        let path = path.into();
        let failed =
            |error: io::Error| RedriveError::new(format!("open the journal {}", path.display()), error);
        if undo_mark(&path).exists() {
            return Err(RedriveError::plain(format!(
                "open the journal {}: the job was undone; begin another, or delete {}",
                path.display(),
                undo_mark(&path).display()
            )));
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let mut journal = Self::in_memory();
        let whole = journal.read(&text, job, &path)?;
        // a line that a crash tore says nothing, and must not be glued to the next
        file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        journal.file = Some((Arc::new(file), path.clone()));
        if whole == 0
            && let Some((file, _)) = &journal.file
        {
            append(file, &[Line::Job(job.to_owned())]).map_err(failed)?;
            file.sync_data().map_err(failed)?;
        }
        Ok(journal)
    }

    /// How many messages the job has sent, earlier runs included.
    pub fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Stops the job whose journal is in this file, wherever it runs, before its next message: what was not sent stays in
    /// the dead letters. It cannot be resumed after that.
    pub fn undo(path: impl AsRef<Path>) -> Result<(), RedriveError> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(RedriveError::plain(format!(
                "undo a redrive: there is no journal {}",
                path.display()
            )));
        }
        File::create(undo_mark(path))
            .map(drop)
            .map_err(|error| RedriveError::new(format!("undo the redrive of {}", path.display()), error))
    }

    /// Returns how many bytes are whole lines.
    fn read(&mut self, text: &str, job: &str, path: &Path) -> Result<usize, RedriveError> {
        let mut whole = 0;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            whole += line.len();
            let odd =
                |error| RedriveError::new(format!("{} is no journal of a redrive", path.display()), error);
            match serde_json::from_str(line).map_err(odd)? {
                Line::Job(other) if other == job => {}
                Line::Job(other) => {
                    return Err(RedriveError::plain(format!(
                        "open the journal {}: it is of job `{other}`, not `{job}`; name another file, or that job",
                        path.display()
                    )));
                }
                Line::Intended(keys) => self.intended.extend(keys),
                Line::Sent(keys) => self.sent.extend(keys),
                Line::NotSent(keys) => {
                    for key in keys {
                        self.intended.remove(&key);
                    }
                }
            }
        }
        Ok(whole)
    }

    pub(super) fn has_sent(&self, key: &str) -> bool {
        self.sent.contains(key)
    }

    pub(super) fn has_intended(&self, key: &str) -> bool {
        self.intended.contains(key)
    }

    /// Notes what is about to be sent, on the disk, and with it all that was noted before; false where the job was undone,
    /// and nothing may be sent. An empty note is only the question.
    pub(super) async fn intend(&mut self, keys: Vec<String>) -> Result<bool, RedriveError> {
        self.intended.extend(keys.iter().cloned());
        let lines = if keys.is_empty() { Vec::new() } else { vec![Line::Intended(keys)] };
        self.on_file(move |file, path| {
            if undo_mark(path).exists() {
                return Ok(false);
            }
            if !lines.is_empty() {
                append(file, &lines)?;
                file.sync_data()?;
            }
            Ok(true)
        })
        .await
    }

    /// Notes how that ended. It outlives the process from here on, and the machine from the next intent on: without it what
    /// was sent is in doubt, and is not sent again.
    pub(super) async fn settle(
        &mut self,
        sent: Vec<String>,
        not_sent: Vec<String>,
    ) -> Result<(), RedriveError> {
        self.sent.extend(sent.iter().cloned());
        for key in &not_sent {
            self.intended.remove(key);
        }
        let mut lines = Vec::new();
        if !sent.is_empty() {
            lines.push(Line::Sent(sent));
        }
        if !not_sent.is_empty() {
            lines.push(Line::NotSent(not_sent));
        }
        self.on_file(move |file, _| append(file, &lines).map(|()| true)).await.map(drop)
    }

    /// All that was noted is on the disk.
    pub(super) async fn finish(&self) -> Result<(), RedriveError> {
        self.on_file(|file, _| file.sync_data().map(|()| true)).await.map(drop)
    }

    /// True where there is no file.
    async fn on_file(
        &self,
        act: impl FnOnce(&File, &Path) -> io::Result<bool> + Send + 'static,
    ) -> Result<bool, RedriveError> {
        let Some((file, path)) = self.file.clone() else { return Ok(true) };
        let shown = path.display().to_string();
        let acted = tokio::task::spawn_blocking(move || act(&file, &path)).await;
        acted
            .map_err(io::Error::other)
            .and_then(|acted| acted)
            .map_err(|error| RedriveError::new(format!("write the journal {shown}"), error))
    }
}

/// One write for all of them, so that a crash tears one line at most.
fn append(mut file: &File, lines: &[Line]) -> io::Result<()> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line)?;
        text.push('\n');
    }
    file.write_all(text.as_bytes())
}

fn undo_mark(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".undone");
    name.into()
}
