//! The table at the end.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;
use steadfast::{Reason, Stats};

use crate::dead_letters::Letter;
use crate::ledger::Ledger;
use crate::run::Outcome;

/// What became of the orders.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    published: u64,
    handled: u64,
    retried: u64,
    dead: BTreeMap<&'static str, u64>,
    restarts: u64,
    lost: u64,
    /// Orders that were handled or set aside once more than needed; delivery is at least once.
    #[serde(skip_serializing_if = "is_zero")]
    duplicates: u64,
    per_second: f64,
    #[serde(skip)]
    booked: (usize, u64),
    #[serde(skip)]
    problems: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    /// Counts orders, not deliveries, and holds what was counted on the way against what was found in the dead letters.
    pub fn new(ledger: &Ledger, outcome: &Outcome, max_attempts: u32) -> Self {
        let (published, handled) = (ledger.published_count(), ledger.handled_count());
        let stats = &outcome.stats;
        let dead = count(&outcome.letters, ledger);
        let dead_total: u64 = dead.values().sum();
        let lost = published.saturating_sub(handled + dead_total);
        let duplicates = (stats.handled + stats.dead_total()).saturating_sub(handled + dead_total);
        let mut problems = wrong_letters(&outcome.letters, max_attempts);
        if lost > 0 {
            problems.push(format!("{lost} orders are lost: neither handled nor among the dead letters"));
        }
        if !outcome.late {
            problems.extend(wrong_count(stats, &outcome.letters));
        }
        Self {
            published,
            handled,
            retried: stats.retried,
            dead,
            restarts: stats.restarts,
            lost,
            duplicates,
            per_second: per_second(published, outcome.took.as_secs_f64()),
            booked: ledger.accounts(),
            problems,
        }
    }

    /// What is wrong, a sentence each; empty where every order is accounted for.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The numbers as one JSON object on one line.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }
}

/// Dead orders by reason, each once.
fn count(letters: &[Letter], ledger: &Ledger) -> BTreeMap<&'static str, u64> {
    let (mut seen, mut dead) = (HashSet::new(), BTreeMap::new());
    for letter in letters {
        if !ledger.is_handled(&letter.id) && seen.insert(&letter.id) {
            *dead.entry(letter.reason.map_or("(no reason)", Reason::as_str)).or_default() += 1;
        }
    }
    dead
}

/// What the consumer counted must be there. More may be there only where a consumer was cut off from its broker: the answer
/// to a settlement is lost with the connection, after the broker has carried it out.
fn wrong_count(stats: &Stats, letters: &[Letter]) -> Option<String> {
    let there = |reason| letters.iter().filter(|letter| letter.reason == Some(reason)).count() as u64;
    let counted =
        |reason| stats.dead.iter().find(|(known, _)| *known == reason).map_or(0, |(_, count)| *count);
    let cut_off = stats.restarts > stats.panics || stats.late > 0;
    let wrong = |reason: &Reason| {
        counted(*reason) > there(*reason) || (!cut_off && counted(*reason) < there(*reason))
    };
    let reason = Reason::ALL.into_iter().find(wrong)?;
    Some(format!(
        "the consumer counted {} dead letters that are {reason}, and there are {}",
        counted(reason),
        there(reason)
    ))
}

/// Each dead letter has a reason, and whatever was tried again was tried exactly as often as the policy allows.
fn wrong_letters(letters: &[Letter], max_attempts: u32) -> Vec<String> {
    let wrong = |letter: &&Letter| match letter.reason {
        None => true,
        Some(Reason::Exhausted | Reason::Panicked | Reason::TimedOut) => {
            letter.attempts != Some(max_attempts)
        }
        Some(_) => letter.attempts.is_none(),
    };
    let describe = |letter: &Letter| {
        let Letter { id, reason, attempts } = letter;
        format!(
            "the dead letter of `{id}` has reason {reason:?} and attempts {attempts:?}, of {max_attempts}"
        )
    };
    letters.iter().filter(wrong).map(describe).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
fn per_second(count: u64, seconds: f64) -> f64 {
    (count as f64 / seconds.max(0.001)).round()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, count: u64| writeln!(f, "{name:<14}{count:>10}");
        row("published", self.published)?;
        row("handled", self.handled)?;
        row("retried", self.retried)?;
        row("dead", self.dead.values().sum())?;
        for (reason, count) in &self.dead {
            row(&format!("  {reason}"), *count)?;
        }
        row("restarts", self.restarts)?;
        row("lost", self.lost)?;
        if self.duplicates > 0 {
            row("duplicates", self.duplicates)?;
        }
        writeln!(f, "{:<14}{:>10.0}", "per second", self.per_second)?;
        let (customers, cents) = self.booked;
        write!(f, "\nbooked {}.{:02} for {customers} customers", cents / 100, cents % 100)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::names::Names;

    fn letter(line: usize, reason: Reason, attempts: u32) -> (Names, Letter) {
        let names = Names::new(None);
        let letter = Letter { id: names.message_id(line), reason: Some(reason), attempts: Some(attempts) };
        (names, letter)
    }

    /// Three orders: the first was handled, the second is this dead letter, the third is `third`.
    fn report(names: &Names, dead: Letter, third: Option<Letter>) -> Report {
        let ledger = Ledger::new(names);
        (1..=3).for_each(|_| ledger.published());
        ledger.book(Some(&names.message_id(1)), "c-1", 5);
        let mut stats = Stats::default();
        stats.handled = 1;
        stats.dead = vec![(Reason::Exhausted, 2)];
        let letters = std::iter::once(dead).chain(third).collect();
        Report::new(&ledger, &Outcome { stats, letters, took: Duration::from_secs(1), late: false }, 5)
    }

    #[test]
    fn orders_that_are_all_accounted_for_are_no_problem() {
        let (names, dead) = letter(2, Reason::Exhausted, 5);
        let third = Letter { id: names.message_id(3), ..dead.clone() };
        let report = report(&names, dead, Some(third));
        assert_eq!(report.problems(), [""; 0]);
        let json = report.json().expect("serialises");
        let want = r#"{"published":3,"handled":1,"retried":0,"dead":{"exhausted":2},"restarts":0,"lost":0,"per_second":3.0}"#;
        assert_eq!(json, want);
    }

    #[test]
    fn an_order_that_is_nowhere_is_lost_whatever_was_counted() {
        let (names, dead) = letter(2, Reason::Exhausted, 5);
        let twice = report(&names, dead.clone(), Some(dead.clone()));
        let missing = report(&names, dead, None);
        for report in [twice, missing] {
            assert!(
                report.problems().iter().any(|problem| problem.contains("1 orders are lost")),
                "{report:?}"
            );
        }
    }

    #[test]
    fn a_dead_letter_that_does_not_say_what_it_must_is_named() {
        let (names, dead) = letter(2, Reason::Exhausted, 4);
        let third = Letter { id: names.message_id(3), reason: None, attempts: Some(5) };
        let report = report(&names, dead, Some(third));
        let told = |line| {
            let id = names.message_id(line);
            report.problems().iter().filter(|problem| problem.contains(&format!("`{id}`"))).count()
        };
        assert_eq!((told(2), told(3)), (1, 1), "{report:?}");
        assert!(
            report.problems().iter().any(|problem| problem.contains("the consumer counted")),
            "{report:?}"
        );
    }
}
