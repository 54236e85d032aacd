//! Where the orders come from.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

const SHIPPED: &str = include_str!("../data/orders.ndjson");

/// The lines of `path`, of stdin for `-`, of the shipped orders where there is no path; empty lines are left out.
pub fn lines(path: Option<&Path>) -> Result<Vec<String>, InputError> {
    let Some(path) = path else { return Ok(filled(SHIPPED.lines().map(str::to_owned)).collect()) };
    let failed = |source| InputError { path: path.to_owned(), source };
    let read: io::Result<Vec<_>> = if path == Path::new("-") {
        io::stdin().lock().lines().collect()
    } else {
        File::open(path).map_err(failed).map(BufReader::new)?.lines().collect()
    };
    Ok(filled(read.map_err(failed)?.into_iter()).collect())
}

fn filled(lines: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    lines.filter(|line| !line.trim().is_empty())
}

/// The orders cannot be read.
#[derive(Debug)]
pub struct InputError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read orders from `{}`", self.path.display())
    }
}

impl std::error::Error for InputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
