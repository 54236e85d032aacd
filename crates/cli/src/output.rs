//! Tables, JSON, questions, progress. Results go to standard output, all else to standard error.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::Exit;
use crate::args::Sure;

type Written = Result<(), Box<dyn std::error::Error + Send + Sync>>;

pub(crate) fn line(text: &str) -> Written {
    match writeln!(io::stdout(), "{text}") {
        // the reader has seen enough, as `head` does
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

pub(crate) fn json(value: &impl Serialize) -> Written {
    line(&serde_json::to_string(value)?)
}

pub(crate) fn note(text: &str) {
    // a standard error that is closed leaves nobody to tell
    let _ = writeln!(io::stderr(), "{text}");
}

/// Columns as wide as what is in them; the last one as it comes.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> Written {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let show = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    show(&head.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    rows.iter().try_for_each(|row| show(row))
}

/// What a broker or a publisher wrote, without what would move a terminal's cursor.
pub(crate) fn clean(text: &str, longest: usize) -> String {
    let mut clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(longest + 1).collect();
    if clean.chars().count() > longest {
        clean = clean.chars().take(longest.saturating_sub(1)).collect();
        clean.push('…');
    }
    clean
}

pub(crate) fn ago(at: Option<SystemTime>) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let seconds = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What a dry run found.
pub(crate) fn would(as_json: bool, what: &str, preview: &impl Serialize) -> Written {
    if as_json { json(preview) } else { line(&format!("would {what}")) }
}

/// Asks before something is changed; none where it may go on.
pub(crate) fn confirm(what: &str, sure: &Sure) -> Result<Option<Exit>, io::Error> {
    if sure.yes {
        return Ok(None);
    }
    if !io::stdin().is_terminal() {
        note(&format!("{what}: nobody is here to ask; add --yes to do it, or --dry-run to look"));
        return Ok(Some(Exit::NotConfirmed));
    }
    write!(io::stderr(), "{what}? [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(if matches!(answer.trim(), "y" | "Y" | "yes") { None } else { Some(Exit::NotConfirmed) })
}

/// A line on a terminal that is written over; nothing elsewhere.
pub(crate) struct Ticker {
    shown: Option<SystemTime>,
    on_terminal: bool,
}

impl Ticker {
    pub(crate) fn new() -> Self {
        Self { shown: None, on_terminal: io::stderr().is_terminal() }
    }

    pub(crate) fn tell(&mut self, text: &str) {
        let now = SystemTime::now();
        let often = Duration::from_millis(200);
        let soon = self.shown.and_then(|at| now.duration_since(at).ok()).is_some_and(|passed| passed < often);
        if self.on_terminal && !soon {
            self.shown = Some(now);
            let _ = write!(io::stderr(), "\r\x1b[2K{text}").and_then(|()| io::stderr().flush());
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if self.shown.is_some() {
            note("");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_move_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\nc", 20), "a [2Jb c");
        assert_eq!(clean("abcdef", 4), "abc…");
        assert_eq!(clean("äöü", 3), "äöü");
    }
}
