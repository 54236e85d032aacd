//! `dead list`, `show`, `discard`, `export` and `import`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::time::SystemTime;

use serde::Serialize;
use steadfast::{Filter, Letter, Payload, Redrive};

use crate::args::{Discard, Export, Import, List, Show};
use crate::export::Line;
use crate::output::{self, Ticker, ago, clean};
use crate::{Exit, Outcome, Session};

/// Letters asked for at once.
const PAGE: usize = 100;
/// Imports under way at once.
const WINDOW: usize = 64;

/// Goes through the letters that fit, until `see` says that it has enough.
async fn each(
    session: &Session,
    place: &str,
    filter: &Filter,
    mut see: impl FnMut(&Letter) -> Result<bool, Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (walk, now) = (session.operator.walk(place).await?, SystemTime::now());
    let mut seen = Ok(true);
    'walk: loop {
        let page = walk.next(PAGE).await?;
        if page.is_empty() {
            break;
        }
        for letter in page {
            walk.keep(letter.mark);
            if filter.fits(&letter, now) {
                seen = see(&letter);
                if !matches!(seen, Ok(true)) {
                    break 'walk;
                }
            }
        }
    }
    walk.close().await?;
    seen.map(drop)
}

pub(crate) async fn list(session: &Session, list: &List) -> Outcome {
    if list.group {
        return groups(session, list).await;
    }
    let mut rows = Vec::new();
    each(session, &list.place, &list.which.filter(), |letter| {
        rows.push(Row::of(letter));
        Ok(rows.len() < list.limit)
    })
    .await?;
    if session.json {
        rows.iter().try_for_each(output::json)?;
    } else if !rows.is_empty() {
        let cells = rows.iter().map(Row::cells).collect::<Vec<_>>();
        output::table(
            &["ID", "REASON", "FINGERPRINT", "FAILED", "TRIES", "REDRIVEN", "CONSUMER", "ERROR"],
            &cells,
        )?;
    }
    Ok(found(rows.len(), &list.place))
}

fn found(count: usize, place: &str) -> Exit {
    if count > 0 {
        return Exit::Done;
    }
    output::note(&format!("no letter in `{place}` fits"));
    Exit::Nothing
}

#[derive(Serialize)]
struct Row {
    id: String,
    reason: Option<String>,
    fingerprint: Option<String>,
    failed_at_ms: Option<u128>,
    attempts: Option<i64>,
    redrives: u32,
    consumer: Option<String>,
    source: Option<String>,
    #[serde(rename = "type")]
    message_type: Option<String>,
    error: Option<String>,
    #[serde(skip)]
    failed: String,
}

impl Row {
    fn of(letter: &Letter) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let since =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        Self {
            id: letter.id().into_owned(),
            reason: owned(letter.reason()),
            fingerprint: owned(letter.fingerprint()),
            failed_at_ms: letter.failed_at().map(since),
            attempts: letter.message.headers.int(steadfast::known::ATTEMPTS).ok().flatten(),
            redrives: letter.redrives(),
            consumer: owned(letter.consumer()),
            source: owned(letter.source()),
            message_type: letter.message.message_type.clone(),
            error: owned(letter.error()),
            failed: ago(letter.failed_at()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let text = |text: &Option<String>, longest| clean(text.as_deref().unwrap_or("-"), longest);
        vec![
            clean(&self.id, 40),
            text(&self.reason, 12),
            text(&self.fingerprint, 16),
            self.failed.clone(),
            self.attempts.map_or_else(|| "-".to_owned(), |attempts| attempts.to_string()),
            self.redrives.to_string(),
            text(&self.consumer, 20),
            text(&self.error, 80),
        ]
    }
}

#[derive(Default, Serialize)]
struct Group {
    fingerprint: String,
    letters: u64,
    reason: String,
    consumer: String,
    #[serde(rename = "type")]
    message_type: String,
    error: String,
    #[serde(skip)]
    oldest: Option<SystemTime>,
    #[serde(skip)]
    newest: Option<SystemTime>,
}

async fn groups(session: &Session, list: &List) -> Outcome {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    each(session, &list.place, &list.which.filter(), |letter| {
        let owned = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let fingerprint = owned(letter.fingerprint());
        let group = groups.entry(fingerprint.clone()).or_insert_with(|| Group {
            fingerprint,
            reason: owned(letter.reason()),
            consumer: owned(letter.consumer()),
            message_type: owned(letter.message.message_type.as_deref()),
            error: owned(letter.error()),
            ..Group::default()
        });
        group.letters += 1;
        if let Some(at) = letter.failed_at() {
            group.oldest = Some(group.oldest.map_or(at, |oldest| oldest.min(at)));
            group.newest = Some(group.newest.map_or(at, |newest| newest.max(at)));
        }
        Ok(true)
    })
    .await?;
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.letters));
    if session.json {
        groups.iter().try_for_each(output::json)?;
    } else if !groups.is_empty() {
        let cells = |group: &Group| {
            vec![
                group.letters.to_string(),
                clean(&group.fingerprint, 16),
                clean(&group.reason, 12),
                ago(group.oldest),
                ago(group.newest),
                clean(&group.consumer, 20),
                clean(&group.message_type, 24),
                clean(&group.error, 80),
            ]
        };
        let rows: Vec<_> = groups.iter().map(cells).collect();
        output::table(
            &[
                "LETTERS",
                "FINGERPRINT",
                "REASON",
                "OLDEST",
                "NEWEST",
                "CONSUMER",
                "TYPE",
                "ERROR OF THE FIRST",
            ],
            &rows,
        )?;
    }
    Ok(found(groups.len(), &list.place))
}

pub(crate) async fn show(session: &Session, show: &Show) -> Outcome {
    let mut shown = 0;
    each(session, &show.place, &show.which.filter(), |letter| {
        shown += 1;
        if session.json {
            output::json(&Line::of(letter))?;
        } else {
            whole(letter)?;
        }
        Ok(false)
    })
    .await?;
    Ok(found(shown, &show.place))
}

fn whole(letter: &Letter) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let message = &letter.message;
    let property = |name: &str, value: Option<&str>| match value {
        Some(value) => output::line(&format!("{name:<16} {}", clean(value, 400))),
        None => Ok(()),
    };
    property("id", Some(&letter.id()))?;
    property("type", message.message_type.as_deref())?;
    property("content type", message.content_type.as_deref())?;
    property("correlation id", message.correlation_id.as_deref())?;
    property("lies in", Some(&message.origin.to_string()))?;
    output::line("headers")?;
    for (name, value) in message.headers.iter() {
        output::line(&format!("  {:<30} {}", clean(name, 60), clean(&value.to_string(), 2100)))?;
    }
    match &message.payload {
        Payload::Body(body) => {
            output::line(&format!("body, {} bytes", body.len()))?;
            output::line(&format!("  {}", clean(&String::from_utf8_lossy(body), 10_000)))?;
        }
        Payload::Fields(fields) => {
            output::line("fields")?;
            for (name, value) in fields {
                let value = clean(&String::from_utf8_lossy(value), 10_000);
                output::line(&format!("  {:<30} {value}", clean(name, 60)))?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn discard(session: &Session, discard: &Discard) -> Outcome {
    let (place, filter) = (discard.place.as_str(), discard.which.filter());
    let preview = Redrive::new("preview").filter(filter.clone()).preview(&*session.operator, place).await?;
    let what = format!("delete {} of {} letters in `{place}` for good", preview.fit, preview.total);
    if preview.fit == 0 {
        return Ok(found(0, place));
    }
    if discard.sure.dry_run {
        return told(session, &what, &preview);
    }
    if let Some(exit) = output::confirm(&what, &discard.sure)? {
        return Ok(exit);
    }
    let (walk, now) = (session.operator.walk(place).await?, SystemTime::now());
    let (mut deleted, mut ticker) = (0_u64, Ticker::new());
    // no more than what was agreed to, though more may have come meanwhile
    while deleted < preview.fit {
        let page = walk.next(PAGE).await?;
        if page.is_empty() {
            break;
        }
        for letter in page {
            if deleted < preview.fit && filter.fits(&letter, now) {
                deleted += u64::from(walk.discard(letter.mark).await?);
            } else {
                walk.keep(letter.mark);
            }
        }
        ticker.tell(&format!("{deleted} of {}", preview.fit));
    }
    walk.close().await?;
    drop(ticker);
    if session.json {
        output::json(&serde_json::json!({ "deleted": deleted }))?;
    } else {
        output::line(&format!("{deleted} deleted"))?;
    }
    Ok(if deleted < preview.fit { Exit::Partly } else { Exit::Done })
}

/// The answer to a dry run.
pub(crate) fn told(session: &Session, what: &str, preview: &impl Serialize) -> Outcome {
    output::would(session.json, what, preview)?;
    Ok(Exit::Done)
}

pub(crate) async fn export(session: &Session, export: &Export) -> Outcome {
    let file = OpenOptions::new().write(true).create_new(true).open(&export.file).map_err(|error| {
        format!("write {}: {error}; name a file that is not there yet", export.file.display())
    })?;
    let (mut file, mut count, mut left_out) = (BufWriter::new(file), 0_usize, 0_usize);
    let mut ticker = Ticker::new();
    each(session, &export.place, &export.which.filter(), |letter| {
        let line = Line::of(letter);
        left_out += usize::from(!line.left_out.is_empty());
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
        count += 1;
        ticker.tell(&format!("{count} exported"));
        Ok(true)
    })
    .await?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    drop(ticker);
    if left_out > 0 {
        output::note(&format!(
            "{left_out} letters have headers of a type that cannot be exported: see `left_out`"
        ));
    }
    if session.json {
        output::json(&serde_json::json!({ "exported": count, "with_left_out_headers": left_out }))?;
    } else {
        output::line(&format!("{count} exported to {}", export.file.display()))?;
    }
    Ok(found(count, &export.place))
}

pub(crate) async fn import(session: &Session, import: &Import) -> Outcome {
    let shown = import.file.display();
    let file = std::fs::File::open(&import.file).map_err(|error| format!("read {shown}: {error}"))?;
    let mut letters = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let odd = |error: String| format!("{shown}, line {}: {error}", number + 1);
        let line: Line = serde_json::from_str(&line?).map_err(|error| odd(error.to_string()))?;
        letters.push(line.outgoing(&import.place).map_err(odd)?);
    }
    let what = format!("publish {} letters to `{}`", letters.len(), import.place);
    if letters.is_empty() {
        return Ok(found(0, &import.place));
    }
    if import.sure.dry_run {
        return told(session, &what, &serde_json::json!({ "letters": letters.len() }));
    }
    if let Some(exit) = output::confirm(&what, &import.sure)? {
        return Ok(exit);
    }
    let publisher = session.broker.publisher().await?;
    let (total, mut done, mut ticker) = (letters.len(), 0, Ticker::new());
    while !letters.is_empty() {
        let batch = letters.drain(..letters.len().min(WINDOW));
        let mut sending = tokio::task::JoinSet::new();
        for letter in batch {
            let publisher = std::sync::Arc::clone(&publisher);
            sending.spawn(async move { publisher.send(letter).await });
        }
        while let Some(sent) = sending.join_next().await {
            sent?.inspect_err(|_| output::note(&format!("{done} of {total} were published")))?;
            done += 1;
        }
        ticker.tell(&format!("{done} of {total}"));
    }
    drop(ticker);
    if session.json {
        output::json(&serde_json::json!({ "imported": done }))?;
    } else {
        output::line(&format!("{done} published to `{}`", import.place))?;
    }
    Ok(Exit::Done)
}
