//! A comparison: the sides do the same work in alternation, and each round gives one ratio.
//!
//! Rates move from machine to machine and from minute to minute, ratios of neighbours in time hold. Hence the ratio of a
//! row is the median of the rounds' ratios, not the ratio of the medians, and its spread says how far to trust it.

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::BoxError;
use crate::meter::Spent;

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Steadfast.
    Ours,
    /// The bare client at its best.
    Bare,
    /// The bare client in the loop that most people write.
    Usual,
}

/// Work that several sides can do.
pub trait Contest {
    /// What the rows are called by.
    fn name(&self) -> &'static str;

    /// Messages of one round, unless told otherwise.
    fn messages(&self) -> u64;

    /// How many times fewer the usual loop gets, because it is that much slower; none where there is no such side.
    fn usual_divisor(&self) -> Option<u64> {
        None
    }

    /// One round of one side, made ready before the clocks start.
    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>>;
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds that count; one more before them does not.
    pub rounds: usize,
    /// Messages of one round in place of the contest's own.
    pub messages: Option<u64>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it is; see `docs/speed.md`.
    pub name: String,
    /// Steadfast's median.
    pub ours: f64,
    /// The median of whom it is compared with.
    pub bare: f64,
    /// Median of the rounds' ratios, ours to theirs.
    pub ratio: f64,
    /// Least and greatest of them.
    pub spread: [f64; 2],
    /// Of `ours` and `bare`.
    pub unit: &'static str,
}

/// Runs a contest.
pub async fn compare(contest: &dyn Contest, plan: Plan) -> Result<Vec<Row>, BoxError> {
    let messages = plan.messages.unwrap_or_else(|| contest.messages()).max(2);
    let (mut ours, mut bare, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=plan.rounds {
        let our_side = contest.run(Side::Ours, messages).await?;
        let bare_side = contest.run(Side::Bare, messages).await?;
        let usual_side = match contest.usual_divisor() {
            Some(divisor) => Some(contest.run(Side::Usual, (messages / divisor).max(2)).await?),
            None => None,
        };
        // the first one warms up
        if round > 0 {
            ours.push(our_side);
            bare.push(bare_side);
            usual.extend(usual_side);
        }
    }
    let name = contest.name();
    let mut rows = vec![
        row(name.to_owned(), &ours, &bare, Spent::rate, "msg/s"),
        row(format!("{name}-cpu"), &ours, &bare, Spent::cpu_micros, "µs/msg"),
    ];
    if !usual.is_empty() {
        rows.push(row(format!("{name}-usual"), &ours, &usual, Spent::rate, "msg/s"));
    }
    Ok(rows)
}

fn row(name: String, ours: &[Spent], bare: &[Spent], of: fn(&Spent) -> f64, unit: &'static str) -> Row {
    let figures = |side: &[Spent]| side.iter().map(of).collect::<Vec<_>>();
    let (ours, bare) = (figures(ours), figures(bare));
    let ratios: Vec<f64> = ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect();
    let spread = ratios.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[least, most], ratio| {
        [least.min(*ratio), most.max(*ratio)]
    });
    Row { name, ours: median(ours), bare: median(bare), ratio: median(ratios), spread, unit }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[middle],
        _ => f64::midpoint(figures[middle - 1], figures[middle]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds() {
        let spent =
            |millis| Spent { messages: 100, wall: Duration::from_millis(millis), cpu: Duration::ZERO };
        let ours = [spent(10), spent(20), spent(100)];
        let bare = [spent(10), spent(10), spent(200)];
        let row = row("x".to_owned(), &ours, &bare, Spent::rate, "msg/s");
        assert!((row.ratio - 1.0).abs() < 1e-9, "{row:?}");
        assert!((row.spread[0] - 0.5).abs() < 1e-9 && (row.spread[1] - 2.0).abs() < 1e-9, "{row:?}");
        assert!((row.ours - 5_000.0).abs() < 1e-6, "{row:?}");
    }

    #[test]
    fn an_even_number_of_figures_has_a_middle() {
        assert!((median(vec![4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < 1e-9);
    }
}
